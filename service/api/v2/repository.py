"""POST /v2/repository: which models there are, and the loading of them."""

from typing import Literal, TypeAlias

from fastapi import APIRouter

from service.api.state import RegistryState
from service.api.v2.body import TensorRoute
from service.api.v2.schemas import IndexEntry, IndexRequest, LoadRequest, UnloadRequest
from service.repository.slots import Entry, State

_State: TypeAlias = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
_STATES: dict[State, _State] = {"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING"}

router = APIRouter(prefix="/v2/repository", route_class=TensorRoute)


@router.post("/index")
async def index(registry: RegistryState, body: IndexRequest | None = None) -> list[IndexEntry]:
    """Every version in the repository, or those that serve."""
    only_ready = body is not None and body.ready
    found = [_entry(*key, entry) for key, entry in registry.states().items()]
    return [entry for entry in found if entry.state == "READY" or not only_ready]


@router.post("/models/{model}/load")
async def load(model: str, registry: RegistryState, body: LoadRequest | None = None) -> None:
    """Load the latest version; answers when it is ready."""
    await registry.load(model)


@router.post("/models/{model}/unload")
async def unload(model: str, registry: RegistryState, body: UnloadRequest | None = None) -> None:
    """Unload every version, once it has answered what it accepted."""
    await registry.unload(model)


def _entry(name: str, version: str, entry: Entry) -> IndexEntry:
    reason = entry.reason or ("" if entry.engine else entry.state)
    return IndexEntry(name=name, version=version, state=_STATES.get(entry.state, "UNAVAILABLE"), reason=reason)
