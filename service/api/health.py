"""Liveness, readiness and metrics: answered by the event loop alone, whatever the engine is doing."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.api.responses import PROBLEMS
from service.api.schemas import Health
from service.api.state import LifecycleState, MetricsState, RegistryState
from service.problems import problem

router = APIRouter(tags=["operations"], responses=PROBLEMS)


@router.get("/health/live")
async def live() -> Health:
    """The process lives."""
    return Health(status="live")


@router.get("/health/ready", response_model=Health)
async def ready(registry: RegistryState, lifecycle: LifecycleState) -> Response:
    """All models were loaded that are to be at the start, one at least serves, and the server is not draining."""
    if lifecycle.is_draining:
        return problem(503, "Draining", "this server is shutting down")
    if not registry.is_ready:
        states = {f"{name}/{version}": entry.state for (name, version), entry in registry.states().items()}
        return problem(503, "Not ready", f"models: {states}; GET /models has the reasons")
    return Response(Health(status="ready").model_dump_json(), media_type="application/json")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(metrics: MetricsState) -> Response:
    """Prometheus text format."""
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
