"""The application: settings in, ASGI app out. No module-level app, nothing opened before the lifespan begins."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service.access import AccessMiddleware
from service.api import chains, cola, health, jobs, kserve, models, openai, predict, sessions, v2
from service.api.direct import DirectMiddleware
from service.api.responses import DescribedApp
from service.bound import Bound
from service.cola.database import Database
from service.cola.jobs import JobLimits, Jobs
from service.cola.memory import Memory
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.problems import add_handlers
from service.registry import Registry
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.rpc.server import RpcServer


async def _start_rpc(app: FastAPI) -> "RpcServer | None":
    if app.state.settings.grpc_port is None:
        return None
    from service.api.rpc.server import RpcServer  # an optional extra

    rpc: RpcServer = await RpcServer.start(app)
    app.state.rpc = rpc
    app.state.lifecycle.closers.append(rpc.close_within)
    return rpc


def create_app(settings: Settings, bound: Mapping[str, Bound] | None = None) -> FastAPI:
    """An app that loads the repository's models in the background once it starts, and unloads them when it stops.

    Models of this process, `bound` by name, serve from the start.
    """
    process_metrics, lifecycle = Metrics(), Lifecycle()
    registry = Registry(settings, process_metrics)
    database = Database(settings.memory, settings.folder)
    limits = JobLimits(settings.max_jobs_queued, settings.max_jobs_running, settings.max_jobs_kept)
    search_jobs = Jobs(database, limits, lifecycle, process_metrics)

    async def load() -> None:
        await registry.load_all()
        lifecycle.is_loaded = True
        await registry.follow()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rpc = await _start_rpc(app)
        for name, model in (bound or {}).items():
            registry.add(name, model)
        starting = [asyncio.create_task(work) for work in (load(), search_jobs.recover())]
        yield
        if rpc:
            await rpc.closed()
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        await search_jobs.close()
        await registry.close()
        await database.close()

    app = DescribedApp(
        title="Fathom",
        description="An inference server whose models choose their own depth, request by request.",
        version=metadata.version("fathom-serving"),
        lifespan=lifespan,
    )
    app.state.settings, app.state.registry = settings, registry
    app.state.memory, app.state.jobs = Memory(database), search_jobs
    app.state.metrics, app.state.lifecycle = process_metrics, lifecycle
    add_handlers(app)
    for module in (predict, sessions, cola, chains, jobs, models, kserve, openai, v2, health):
        app.include_router(module.router)
    app.add_middleware(DirectMiddleware, routes=[*predict.router.routes, *v2.infer.router.routes])
    app.add_middleware(
        AccessMiddleware, metrics=process_metrics, lifecycle=lifecycle, max_request_s=settings.max_request_s
    )
    return app
