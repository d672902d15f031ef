"""GET /models and the loading of versions."""

from fastapi import APIRouter

from service.api.responses import PROBLEMS
from service.api.schemas import ModelInfo
from service.api.state import RegistryState
from service.registry import Entry

router = APIRouter(prefix="/models", tags=["models"], responses=PROBLEMS)


@router.get("")
async def list_models(registry: RegistryState) -> list[ModelInfo]:
    """Every version in the repository, loaded or not."""
    return [_info(name, version, entry) for (name, version), entry in registry.states().items()]


@router.get("/{model}")
async def show_model(model: str, registry: RegistryState) -> list[ModelInfo]:
    """The versions of one model."""
    found = [_info(*key, entry) for key, entry in registry.states().items() if key[0] == model]
    if not found:
        registry.get(model)
    return found


@router.post("/{model}/load")
async def load_model(model: str, registry: RegistryState, version: str | None = None) -> ModelInfo:
    """Load a version, the latest by default; answers when it is ready."""
    engine = await registry.load(model, version)
    return _info(engine.manifest.name, engine.manifest.version, Entry("ready", engine))


@router.post("/{model}/unload")
async def unload_model(model: str, registry: RegistryState, version: str | None = None) -> list[ModelInfo]:
    """Unload a version, or all of a model, once they have answered what they accepted."""
    await registry.unload(model, version)
    return [_info(*key, entry) for key, entry in registry.states().items() if key[0] == model]


def _info(name: str, version: str, entry: Entry) -> ModelInfo:
    info = ModelInfo(name=name, version=version, state=entry.state, reason=entry.reason)
    if entry.engine is None:
        return info
    manifest = entry.engine.manifest
    return info.model_copy(
        update={
            "kind": manifest.kind,
            "num_layers": manifest.num_layers,
            "residual_form": manifest.layers.residual_form if manifest.layers else None,
            "max_chain_length": entry.engine.limits.max_chain_length,
            "inputs": [spec.model_dump() for spec in manifest.inputs],
            "outputs": [spec.model_dump() for spec in manifest.outputs],
            "image": manifest.image and manifest.image.model_dump(),
            "labels": list(manifest.labels),
            "formats": sorted(manifest.forms),
            "provenance": manifest.provenance,
        }
    )
