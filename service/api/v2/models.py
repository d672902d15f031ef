"""GET /v2 and below: who answers, whether it serves, and what its models take."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.artifact import TensorSpec
from service.api import health
from service.api.state import LifecycleState, RegistryState
from service.api.v2 import texts
from service.api.v2.schemas import Live, ModelMetadata, ModelReady, Ready, ServerMetadata, TensorMetadata
from service.engine.engine import Engine
from service.registry import Registry

_EXTENSIONS = [
    "binary_tensor_data",
    "generate",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
]

router = APIRouter(prefix="/v2")


@router.get("")
async def server_metadata(request: Request) -> ServerMetadata:
    """Name, version and extensions of the server."""
    return metadata(request.app.version)


def metadata(version: str) -> ServerMetadata:
    """What the server of this version says of itself."""
    return ServerMetadata(name="fathom", version=version, extensions=_EXTENSIONS)


@router.get("/health/live")
async def live() -> Live:
    """The process lives."""
    return Live(live=True)


@router.get("/health/ready", response_model=Ready)
async def ready(registry: RegistryState, lifecycle: LifecycleState) -> Response:
    """All models were loaded that are to be at the start, one at least serves, and the server is not draining."""
    answer = await health.ready(registry, lifecycle)
    if answer.status_code != 200:
        return answer
    return Response(Ready(ready=True).model_dump_json(), media_type="application/json")


@router.get("/models/{model}/versions/{version}")
@router.get("/models/{model}")
async def model_metadata(model: str, registry: RegistryState, version: str | None = None) -> ModelMetadata:
    """Inputs and outputs of a version, the latest by default."""
    engine = await registry.get(model, version, takes_turn=False)
    inputs, outputs = _tensors(engine)
    return ModelMetadata(
        name=engine.manifest.name,
        versions=_versions(registry, model),
        platform=f"fathom_{engine.manifest.kind}",
        inputs=inputs,
        outputs=outputs,
        parameters=_bounds(engine),
    )


@router.get("/models/{model}/versions/{version}/ready")
@router.get("/models/{model}/ready")
async def model_ready(model: str, registry: RegistryState, version: str | None = None) -> ModelReady:
    """The model serves, or will with its first request; 503 otherwise."""
    name, _ = registry.check(model, version)
    return ModelReady(name=name, ready=True)


def _tensors(engine: Engine) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    manifest = engine.manifest
    if manifest.language:
        return [texts.INPUT], [texts.OUTPUT]
    return [_tensor(spec) for spec in manifest.inputs], [_tensor(spec) for spec in manifest.outputs]


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


def _versions(registry: Registry, model: str) -> list[str]:
    return [version for (name, version), entry in registry.states().items() if name == model and entry.engine]


def _bounds(engine: Engine) -> dict[str, str | int]:
    layers = engine.manifest.layers
    if layers is None:
        return {}
    longest = engine.limits.max_chain_length
    return {"num_layers": layers.count, "max_chain_length": longest, "residual_form": layers.residual_form}
