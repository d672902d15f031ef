"""/models/{model}/sessions/{session}: looking at an open session of a recurrent model, and ending it."""

from fastapi import APIRouter
from starlette.responses import Response

from models.errors import InputError
from service.api.body import JsonRoute
from service.api.responses import PROBLEMS
from service.api.schemas import SessionInfo
from service.api.state import RegistryState
from service.engine.engine import Engine
from service.engine.sequence import SequenceEngine
from service.engine.sessions import Session
from service.engine.terms import current_terms
from service.registry import Registry

router = APIRouter(
    prefix="/models/{model}/sessions/{session}", route_class=JsonRoute, tags=["predict"], responses=PROBLEMS
)


@router.get("")
async def show_session(model: str, session: str, registry: RegistryState) -> SessionInfo:
    """How far it is, for whoever lost an answer."""
    engine, found = await _find(model, session, registry)
    return SessionInfo(
        id=found.id,
        steps=found.num_steps,
        expires_in_s=engine.sessions.expires_in_s(found),
        model=engine.manifest.name,
        version=engine.manifest.version,
        chain=list(found.chain.layers),
        busy=found.is_busy,
    )


@router.delete("", status_code=204)
async def end_session(model: str, session: str, registry: RegistryState) -> Response:
    """Forget it."""
    engine, found = await _find(model, session, registry)
    engine.sessions.end(found)
    return Response(status_code=204)


async def engine_for(registry: Registry, model: str, version: str | None, session: str | None) -> Engine:
    """The engine that answers a request: where no version is said, the one that its session was begun on.

    Raises UnknownModelError, UnavailableError or DeadlineError.
    """
    if session is not None and version is None:
        version = registry.sessions.version_of(current_terms().client, model, session)
    return await registry.get(model, version)


def refuse_stateless(engine: Engine) -> None:
    """Raise InputError for a session of a model that keeps nothing between requests."""
    if not isinstance(engine, SequenceEngine):
        name = engine.manifest.name
        raise InputError(f"model {name!r} is not recurrent and keeps nothing between requests; leave the session out")


async def _find(model: str, session: str, registry: Registry) -> tuple[SequenceEngine, Session]:
    engine = await engine_for(registry, model, None, session)
    refuse_stateless(engine)
    assert isinstance(engine, SequenceEngine)
    return engine, engine.sessions.find(engine.owner, current_terms().client, session)
