"""POST /v2/models/{model}/infer: tensors in, tensors out, as JSON or as bytes, along any chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from models.chain import Chain
from models.errors import InputError
from service.api.sessions import engine_for, refuse_stateless
from service.api.v2 import encoded, tensors, texts
from service.api.v2.body import BINARY, DOCUMENT_BYTES, JSON, DirectTensorRoute, TensorRequest
from service.api.v2.generate import sampling, tighten
from service.api.v2.schemas import InferParameters, InferRequest, InferResponse, Ran
from service.api.v2.tensors import Output
from service.cola.memory import Memory
from service.engine.encoder import EncoderEngine
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.engine.sequence import SequenceEngine
from service.engine.sessions import SessionAsked
from service.engine.tensor import TensorEngine
from service.engine.terms import noted
from service.registry import Registry
from service.settings import Settings

# What a model without text can be told.
_FOR_TENSORS = {"chain", "depth", "binary_data_output", "timeout", "priority"}
_FOR_SEQUENCES = {"sequence_id", "sequence_start", "sequence_end"}
_AS_BYTES = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
_HEADER = {
    "name": DOCUMENT_BYTES,
    "in": "header",
    "description": "bytes of the JSON document, where binary tensors lie behind it",
    "schema": {"type": "integer", "minimum": 1},
}
_ROUTE: dict[str, Any] = {
    "response_model": InferResponse,
    "responses": {200: {"content": _AS_BYTES}},
    "openapi_extra": {"parameters": [_HEADER], "requestBody": {"content": _AS_BYTES}},
}

router = APIRouter(prefix="/v2", route_class=DirectTensorRoute)


@dataclass(frozen=True, slots=True)
class Answer:
    """Every output of a model, and what ran."""

    outputs: list[Output]
    ran: Ran


@router.post("/models/{model}/versions/{version}/infer", **_ROUTE)
@router.post("/models/{model}/infer", **_ROUTE)
async def infer(model: str, body: InferRequest, request: TensorRequest, version: str | None = None) -> Response:
    """Run every row along its chain."""
    state = request.app.state
    engine = await engine_of(model, version, body.parameters, state.registry)
    _check_names(body, engine)
    data = tensors.pieces(body.inputs, request.binary)
    return _response(body, engine, await answer(body, data, engine, state.settings, state.memory))


async def answer(
    body: InferRequest, data: Sequence[tensors.Piece], engine: Engine, settings: Settings, memory: Memory
) -> Answer:
    """Run what a request asks for; `data` is that of each of its inputs."""
    tighten(body.parameters)
    if isinstance(engine, EncoderEngine):
        told = encoded.outputs_of(engine)
        _check_outputs(body, [told.name])
        if foreign := sorted(body.parameters.model_fields_set - _FOR_TENSORS - encoded.PARAMETERS):
            raise InputError(f"model {engine.manifest.name!r} writes no text; leave {foreign} out of the parameters")
        read = texts.read(body.inputs, data, settings.max_inputs)
        output, done = await encoded.encode(body.parameters, read, body.inputs[0].shape, engine, memory)
        executed, full = sum(one.layers_executed for one in done), sum(one.layers_full for one in done)
        return Answer([output], ran([one.chain for one in done], executed, full))
    if isinstance(engine, LanguageEngine):
        prompts = texts.read(body.inputs, data, settings.max_inputs)
        _check_outputs(body, [texts.OUTPUT.name])
        return await _generate(body, engine, prompts, memory)
    if foreign := sorted(body.parameters.model_fields_set & encoded.PARAMETERS):
        raise InputError(f"model {engine.manifest.name!r} is no encoder; leave {foreign} out of the parameters")
    assert isinstance(engine, TensorEngine)
    arrays = tensors.read(body.inputs, data, engine.manifest.inputs)
    _check_outputs(body, [spec.name for spec in engine.manifest.outputs])
    if (asked := _sequence(body.parameters)) is not None:
        assert isinstance(engine, SequenceEngine)
        return await _go_on(body, engine, arrays, asked)
    return await _run(body, engine, arrays, memory)


async def engine_of(model: str, version: str | None, parameters: InferParameters, registry: Registry) -> Engine:
    """The engine that answers; of a sequence that is under way, that of its version."""
    if (asked := _sequence(parameters)) is None:
        return await registry.get(model, version or None)
    engine = await engine_for(registry, model, version or None, None if asked.starts else asked.id)
    refuse_stateless(engine)
    return engine


async def _generate(body: InferRequest, engine: LanguageEngine, prompts: list[str], memory: Memory) -> Answer:
    chain = await memory.resolve(body.parameters.chain_of(engine), engine, prompts)
    done = await engine.generate(prompts, chain, sampling(body.parameters))
    output = texts.write([one.text for one in done], body.inputs[0].shape)
    executed, full = sum(one.layers_executed for one in done), sum(one.layers_full for one in done)
    return Answer([output], ran([one.chain for one in done], executed, full))


async def _run(body: InferRequest, engine: TensorEngine, arrays: dict[str, tensors.Array], memory: Memory) -> Answer:
    if foreign := sorted(body.parameters.model_fields_set - _FOR_TENSORS - _FOR_SEQUENCES):
        raise InputError(f"model {engine.manifest.name!r} writes no text; leave {foreign} out of the parameters")
    chain = await memory.resolve(body.parameters.chain_of(engine), engine, arrays)
    chains = engine.affordable_chains(chain, len(next(iter(arrays.values()))))
    outputs, timing = await engine.forward(arrays, chains)
    written = [tensors.write(outputs[spec.name], spec) for spec in engine.manifest.outputs]
    executed = 0 if timing.is_cached else sum(len(one.layers) for one in chains)
    return Answer(written, ran(chains, executed, engine.num_layers * len(chains)))


async def _go_on(
    body: InferRequest, engine: SequenceEngine, arrays: dict[str, tensors.Array], asked: SessionAsked
) -> Answer:
    if foreign := sorted(body.parameters.model_fields_set - _FOR_TENSORS - _FOR_SEQUENCES):
        raise InputError(f"model {engine.manifest.name!r} writes no text; leave {foreign} out of the parameters")
    said = body.parameters.model_fields_set & {"chain", "depth"}
    done = await engine.go_on(arrays, body.parameters.chain_of(engine) if said else None, asked)
    written = [tensors.write(done.outputs[spec.name][None], spec) for spec in engine.manifest.outputs]
    told = ran([done.chain], done.layers_executed, engine.num_layers * done.num_passes)
    return Answer(written, told.model_copy(update={"sequence_steps": done.num_steps_read}))


def _sequence(parameters: InferParameters) -> SessionAsked | None:
    """What is said of a sequence, in the words of Triton. Raises InputError for its start or end without an id."""
    if not parameters.sequence_id:
        if parameters.sequence_start or parameters.sequence_end:
            raise InputError("sequence_start or sequence_end came without a sequence_id; send one, not 0")
        return None
    return SessionAsked(str(parameters.sequence_id), parameters.sequence_start, parameters.sequence_end)


def ran(chains: Sequence[Chain], executed: int, full: int) -> Ran:
    """What a response says of the chains of its rows, in text form."""
    different = {one.layers for one in chains}
    chain = chains[0].format() if len(different) == 1 else [one.format() for one in chains]
    return Ran(chain=chain, layers_executed=executed, layers_full=full, **noted())


def _check_names(body: InferRequest, engine: Engine) -> None:
    manifest = engine.manifest
    for said, name in ((body.model_name, manifest.name), (body.model_version, manifest.version)):
        if said not in (None, "", name):
            raise InputError(f"the body names {said!r:.60} and the path {name!r}; leave it out of the body")


def _check_outputs(body: InferRequest, names: Sequence[str]) -> None:
    for wanted in body.outputs:
        if wanted.name not in names:
            raise InputError(f"there is no output {wanted.name!r:.60}; the model gives {list(names)}")


def _response(body: InferRequest, engine: Engine, told: Answer) -> Response:
    by_name = {output.name: output for output in told.outputs}
    default = body.parameters.binary_data_output
    wanted = {one.name: one.parameters.binary_data for one in body.outputs} or dict.fromkeys(by_name)
    chosen = [(by_name[name], default if said is None else said) for name, said in wanted.items()]
    head = {
        "model_name": engine.manifest.name,
        "model_version": engine.manifest.version,
        **({} if body.id is None else {"id": body.id}),
        "parameters": told.ran.model_dump(exclude_none=True),
        "outputs": [_entry(output, is_binary) for output, is_binary in chosen],
    }
    document = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(is_binary for _, is_binary in chosen):
        return Response(document, media_type=JSON)
    parts = [document, *(output.raw for output, is_binary in chosen if is_binary)]
    return Response(b"".join(parts), headers={DOCUMENT_BYTES: str(len(document))}, media_type=BINARY)


def _entry(output: Output, is_binary: bool) -> dict[str, Any]:
    data = {"parameters": {"binary_data_size": len(output.raw)}} if is_binary else {"data": output.data}
    return {"name": output.name, "shape": output.shape, "datatype": output.datatype, **data}
