"""KServe's first protocol (that of TensorFlow Serving): POST /v1/models/{model}:predict, instances in, predictions out.

Whether a model is ready, GET /v1/models/{model}, is answered beside OpenAI's dialect, which has the same path.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from models.errors import InputError, LengthError
from service.api.body import JsonRoute
from service.api.responses import PROBLEMS
from service.api.schemas import Body, ChainChoice, SamplingParameters
from service.api.state import MemoryState, RegistryState, SettingsState
from service.api.v2.generate import sampling
from service.api.v2.infer import ran
from service.api.v2.schemas import InferenceError, Ran
from service.cola.memory import Memory
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.engine.tensor import TensorEngine

_ERRORS: dict[int | str, dict[str, type]] = {"4XX": {"model": InferenceError}, "5XX": {"model": InferenceError}}

router = APIRouter(tags=["kserve v1"], route_class=JsonRoute)


class InstancesRequest(ChainChoice):
    """Texts or token-id lists for a language model; for others rows, or `{input: row}` each."""

    instances: list[Any] = Field(min_length=1)
    parameters: SamplingParameters = Field(default_factory=SamplingParameters)


class PredictionsResponse(BaseModel):
    """One prediction per instance, in order: a text, a row, or `{output: row}` where there are several outputs."""

    predictions: list[Any]
    model_name: str
    model_version: str
    parameters: Ran


class Alive(Body):
    """What clients of the protocol take for a sign of life."""

    status: str


@router.get("/", responses=PROBLEMS)
async def alive() -> Alive:
    """The process lives."""
    return Alive(status="alive")


@router.post("/v1/models/{model}:predict", response_model=PredictionsResponse, responses=_ERRORS)
async def predict(
    model: str, body: InstancesRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState
) -> Response:
    """Run every instance along its chain."""
    if len(body.instances) > settings.max_inputs:
        raise LengthError(
            f"{len(body.instances)} instances came; one request takes {settings.max_inputs}; send several"
        )
    engine = await registry.get(model)
    if isinstance(engine, LanguageEngine):
        return await _texts(body, engine, memory)
    assert isinstance(engine, TensorEngine)
    return await _rows(body, engine, memory)


async def _texts(body: InstancesRequest, engine: LanguageEngine, memory: Memory) -> Response:
    prompts = body.instances
    for place, one in enumerate(prompts):
        if not isinstance(one, str | list):
            raise InputError(f"instance {place} is neither a text nor a list of token ids; send one of these")
    chain = await memory.resolve(body.chain_of(engine), engine, prompts)
    done = await engine.generate(prompts, chain, sampling(body.parameters))
    executed, full = sum(one.layers_executed for one in done), sum(one.layers_full for one in done)
    return _response(engine, [one.text for one in done], ran([one.chain for one in done], executed, full))


async def _rows(body: InstancesRequest, engine: TensorEngine, memory: Memory) -> Response:
    if body.parameters.model_fields_set:
        raise InputError(f"model {engine.manifest.name!r} writes no text; leave 'parameters' out")
    inputs = _by_input(body.instances)
    done = await engine.infer(inputs, await memory.resolve(body.chain_of(engine), engine, inputs))
    executed, full = sum(map(len, done.chains)), engine.num_layers * len(done.chains)
    return _response(engine, _predictions(done.outputs), ran(done.chains, executed, full))


def _predictions(outputs: Mapping[str, Any]) -> Any:
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]


def _by_input(instances: Sequence[Any]) -> object:
    """Instances as the engine takes inputs. Raises InputError if they do not all name the same."""
    if not isinstance(instances[0], dict):
        return instances
    names = instances[0].keys()
    for place, one in enumerate(instances):
        if not isinstance(one, dict) or one.keys() != names:
            raise InputError(
                f"instance {place} is no object with {sorted(names)}, as instance 0 is; send the same in each"
            )
    return {name: {"data": [one[name] for one in instances]} for name in names}


def _response(engine: Engine, predictions: Any, told: Ran) -> Response:
    """The answer as `PredictionsResponse` describes it; pydantic would look at every number."""
    name, version = engine.manifest.name, engine.manifest.version
    document = {
        "predictions": predictions,
        "model_name": name,
        "model_version": version,
        "parameters": told.model_dump(exclude_none=True),
    }
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
