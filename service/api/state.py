"""What routes get from the application: its settings, its models, its metrics."""

from typing import Annotated

from fastapi import Depends, Request

from service.cola.jobs import Jobs
from service.cola.memory import Memory
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


def _lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


def _memory(request: Request) -> Memory:
    memory: Memory = request.app.state.memory
    return memory


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


SettingsState = Annotated[Settings, Depends(_settings)]
RegistryState = Annotated[Registry, Depends(_registry)]
MetricsState = Annotated[Metrics, Depends(_metrics)]
MemoryState = Annotated[Memory, Depends(_memory)]
JobsState = Annotated[Jobs, Depends(_jobs)]
LifecycleState = Annotated[Lifecycle, Depends(_lifecycle)]
