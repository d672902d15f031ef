"""GET /models, the loading of versions, and looking at the repository again."""

from typing import Any

from fastapi import APIRouter

from models.artifact import Manifest
from service.api.responses import PROBLEMS
from service.api.schemas import ModelInfo
from service.api.state import RegistryState
from service.registry import Registry
from service.repository.slots import Entry

router = APIRouter(tags=["models"], responses=PROBLEMS)


@router.get("/models")
async def list_models(registry: RegistryState) -> list[ModelInfo]:
    """Every version in the repository, loaded or not."""
    return _infos(registry)


@router.get("/models/{model}")
async def show_model(model: str, registry: RegistryState) -> list[ModelInfo]:
    """The versions of one model."""
    found = _infos(registry, model)
    if not found:
        registry.check(model)
    return found


@router.post("/repository/reload")
async def reload_models(registry: RegistryState) -> list[ModelInfo]:
    """Look at the repository again: load new versions, apply changed settings, retry what failed, let go what is gone.

    Answers when that is done; what failed has its reason. Versions serve on until others have taken their place.
    """
    await registry.reload(is_retry=True)
    return _infos(registry)


@router.post("/models/{model}/load")
async def load_model(model: str, registry: RegistryState, version: str | None = None) -> ModelInfo:
    """Load a version or label, by default what the model's settings want; answers when it is ready."""
    manifest = (await registry.load(model, version)).manifest
    key = manifest.name, manifest.version
    return _info(*key, registry.states()[key], registry)


@router.post("/models/{model}/unload")
async def unload_model(model: str, registry: RegistryState, version: str | None = None) -> list[ModelInfo]:
    """Unload a version, or all of a model, once they have answered what they accepted."""
    await registry.unload(model, version)
    return _infos(registry, model)


def _infos(registry: Registry, model: str | None = None) -> list[ModelInfo]:
    found = registry.states().items()
    return [_info(*key, entry, registry) for key, entry in found if model in (None, key[0])]


def _info(name: str, version: str, entry: Entry, registry: Registry) -> ModelInfo:
    settings = registry.settings_of(name)
    info = ModelInfo(
        name=name,
        version=version,
        state=entry.state,
        reason=entry.reason,
        labels=[label for label, labelled in settings.labels.items() if labelled == version],
        split=settings.weights.get(version, 0) if settings.split else None,
    )
    if entry.engine is None:
        return info
    manifest = entry.engine.manifest
    return info.model_copy(
        update={
            "kind": manifest.kind,
            "num_layers": manifest.num_layers,
            "residual_form": manifest.layers.residual_form if manifest.layers else None,
            "is_trained": manifest.layers.is_trained if manifest.layers else True,
            "max_chain_length": entry.engine.limits.max_chain_length,
            "inputs": [spec.model_dump() for spec in manifest.inputs],
            "outputs": [spec.model_dump() for spec in manifest.outputs],
            "sequence": manifest.sequence and manifest.sequence.model_dump(),
            "image": manifest.image and manifest.image.model_dump(),
            "sampling": _sampling(manifest),
            "classes": list(manifest.classes),
            "formats": sorted(manifest.forms),
            "provenance": manifest.provenance,
        }
    )


def _sampling(manifest: Manifest) -> dict[str, Any] | None:
    language = manifest.language
    return language.sampling.model_dump() if language and language.sampling else None
