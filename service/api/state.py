"""What routes get from the application: its settings, its models, its metrics.

Asynchronous although nothing waits: FastAPI runs any other dependency in a thread, which costs more than a small model.
"""

from typing import Annotated

from fastapi import Depends, Request

from service.cola.jobs import Jobs
from service.cola.memory import Memory
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


async def _memory(request: Request) -> Memory:
    memory: Memory = request.app.state.memory
    return memory


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


SettingsState = Annotated[Settings, Depends(_settings)]
RegistryState = Annotated[Registry, Depends(_registry)]
MetricsState = Annotated[Metrics, Depends(_metrics)]
MemoryState = Annotated[Memory, Depends(_memory)]
JobsState = Annotated[Jobs, Depends(_jobs)]
LifecycleState = Annotated[Lifecycle, Depends(_lifecycle)]
