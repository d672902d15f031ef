"""POST /v2/models/{model}/generate and /generate_stream: text in, text out."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from models.errors import InputError
from service.api import sse
from service.api.responses import STREAM
from service.api.schemas import SamplingParameters
from service.api.state import MemoryState, RegistryState
from service.api.v2.body import JSON, TensorRoute
from service.api.v2.schemas import GenerateRan, GenerateRequest, GenerateResponse, RideAlong
from service.cola.memory import Memory
from service.engine.engine import Engine
from service.engine.language import Completion, LanguageEngine
from service.engine.sampling import Sampling
from service.engine.terms import ask, noted
from service.problems import problem_of

router = APIRouter(prefix="/v2", route_class=TensorRoute)


@router.post("/models/{model}/versions/{version}/generate", response_model=GenerateResponse)
@router.post("/models/{model}/generate", response_model=GenerateResponse)
async def generate(
    model: str, body: GenerateRequest, registry: RegistryState, memory: MemoryState, version: str | None = None
) -> Response:
    """Continue a text."""
    engine = _engine(await registry.get(model, version), body, streams=False)
    body = await _recalled(body, engine, memory)
    (done,) = await engine.generate([body.text_input], body.parameters.chain, sampling(body.parameters))
    return Response(_told(body, engine, done.text, done).model_dump_json(exclude_none=True), media_type=JSON)


@router.post("/models/{model}/versions/{version}/generate_stream", response_model=GenerateResponse, responses=STREAM)
@router.post("/models/{model}/generate_stream", response_model=GenerateResponse, responses=STREAM)
async def generate_stream(
    model: str, body: GenerateRequest, registry: RegistryState, memory: MemoryState, version: str | None = None
) -> Response:
    """Continue a text, as server-sent events: each adds to the text, the last says what ran, or what went wrong."""
    engine = _engine(await registry.get(model, version), body, streams=True)
    return await sse.stream(_to_the_end(_events(body, engine, memory)))


def sampling(parameters: SamplingParameters) -> Sampling:
    """How tokens are chosen."""
    said = parameters.model_dump(include=set(SamplingParameters.model_fields))
    return Sampling(**{**said, "stop": tuple(parameters.stop)})


def tighten(parameters: RideAlong) -> None:
    """Let the request have the time and the priority it asks for."""
    ask(parameters.timeout / 1e6 or None, parameters.priority)


def _engine(engine: Engine, body: GenerateRequest, streams: bool) -> LanguageEngine:
    name, said = engine.manifest.name, body.parameters.stream
    if not isinstance(engine, LanguageEngine):
        raise InputError(f"model {name!r} writes no text; POST /v2/models/{name}/infer")
    if said not in (None, streams):
        route = "generate_stream" if said else "generate"
        raise InputError(f"parameters.stream is {str(said).lower()}; POST /v2/models/{name}/{route}")
    tighten(body.parameters)
    return engine


async def _recalled(body: GenerateRequest, engine: LanguageEngine, memory: Memory) -> GenerateRequest:
    chain = await memory.resolve(body.parameters.chain_of(engine), engine, [body.text_input])
    return body.model_copy(update={"parameters": body.parameters.model_copy(update={"chain": chain})})


def _told(body: GenerateRequest, engine: LanguageEngine, text: str, done: Completion | None) -> GenerateResponse:
    parameters = done and GenerateRan(
        chain=done.chain.format(),
        layers_executed=done.layers_executed,
        layers_full=done.layers_full,
        finish_reason=done.finish_reason,
        **noted(),
    )
    name, version = engine.manifest.name, engine.manifest.version
    return GenerateResponse(model_name=name, model_version=version, id=body.id, text_output=text, parameters=parameters)


async def in_pieces(body: GenerateRequest, engine: LanguageEngine, memory: Memory) -> AsyncGenerator[GenerateResponse]:
    """The text in pieces; the last has the parameters. Leaving early frees the sequence."""
    body, num_sent = await _recalled(body, engine, memory), 0
    async with aclosing(engine.stream(body.text_input, body.parameters.chain, sampling(body.parameters))) as stream:
        async for one in stream:
            if isinstance(one, Completion):
                yield _told(body, engine, one.text[num_sent:], one)
            elif added := one[0]:
                yield _told(body, engine, added, None)
                num_sent += len(added)


async def _events(body: GenerateRequest, engine: LanguageEngine, memory: Memory) -> AsyncGenerator[bytes]:
    async with aclosing(in_pieces(body, engine, memory)) as pieces:
        async for piece in pieces:
            yield b"data: " + orjson.dumps(piece.model_dump(exclude_none=True)) + b"\n\n"


async def _to_the_end(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The events; what fails after the first becomes the last, in the protocol's error shape."""
    async with aclosing(events):
        yield await anext(events)
        try:
            async for one in events:
                yield one
        except Exception as error:
            yield b"data: " + bytes(problem_of(error).body) + b"\n\n"
