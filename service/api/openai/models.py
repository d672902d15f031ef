"""GET /v1/models: the models that are ready, for clients of OpenAI's dialect and of KServe's first protocol alike."""

from fastapi import APIRouter

from models.errors import UnknownModelError
from service.api.body import JsonRoute
from service.api.openai.answers import Model, ModelList, Served
from service.api.state import RegistryState
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.registry import Registry

router = APIRouter(prefix="/v1/models", route_class=JsonRoute)


@router.get("")
async def list_models(registry: RegistryState) -> ModelList:
    """The language models that are ready, each in its latest version."""
    names = dict.fromkeys(name for (name, _), entry in registry.states().items() if entry.engine)
    ready = [await registry.get(name, takes_turn=False) for name in names]
    languages = [_model(engine) for engine in ready if isinstance(engine, LanguageEngine)]
    return ModelList(data=languages, models=list(names))


@router.get("/{model}")
async def show_model(model: str, registry: RegistryState) -> Model:
    """One model, in its latest version; 503 while it is not ready."""
    return _model(await registry.get(model, takes_turn=False))


async def language_engine(registry: Registry, name: str, version: str | None = None) -> LanguageEngine:
    """The engine of a language model. Raises UnknownModelError, for other kinds too, or UnavailableError."""
    engine = await registry.get(name, version)
    if not isinstance(engine, LanguageEngine):
        raise UnknownModelError(f"model {name!r} writes no text; POST /predict runs it, GET /v1/models lists others")
    return engine


def _model(engine: Engine) -> Model:
    return Model(
        id=engine.manifest.name,
        name=engine.manifest.name,
        fathom=Served(
            version=engine.manifest.version,
            num_layers=engine.num_layers,
            max_chain_length=engine.limits.max_chain_length,
        ),
    )
