"""POST /predict: any model, any chain."""

from collections.abc import AsyncGenerator, Sequence

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from models.errors import InputError, LengthError
from service.api import encoded, sequences, sse
from service.api.direct import DirectRoute
from service.api.responses import PROBLEMS, STREAM
from service.api.schemas import (
    EmbeddingOutput,
    Parameters,
    PredictRequest,
    PredictResponse,
    TextOutput,
    TimingOut,
    Token,
    TokenLogprob,
    Usage,
)
from service.api.sessions import engine_for, refuse_stateless
from service.cola.memory import Memory
from service.engine.encoder import EncoderEngine
from service.engine.engine import FULL, Engine
from service.engine.language import Completion, Embedding, Judgement, LanguageEngine
from service.engine.sampling import Choice, Sampling
from service.engine.sequence import SequenceEngine
from service.engine.tensor import TensorEngine
from service.engine.terms import ask, noted
from service.engine.work import Timing
from service.logs import request_id
from service.registry import Registry

router = APIRouter(route_class=DirectRoute, tags=["predict"], responses=PROBLEMS)


@router.post("/predict", response_model=PredictResponse, responses=STREAM)
async def predict(body: PredictRequest, request: Request) -> Response:
    """Run every input along its chain."""
    state = request.app.state
    max_inputs: int = state.settings.max_inputs
    if len(body.inputs) > max_inputs:
        raise LengthError(f"{len(body.inputs)} inputs came; one request takes {max_inputs}; send several")
    if not len(body.inputs):
        raise InputError("no inputs came; send at least one")
    ask(body.parameters.timeout_s, body.parameters.priority)
    engine = await _engine(body, state.registry)
    await recall(body, engine, state.memory)
    if body.stream:
        return await sse.stream(_events(body, engine))
    return Response(await answer(body, engine), media_type="application/json")


async def _engine(body: PredictRequest, registry: Registry) -> Engine:
    if (asked := body.session_asked()) is None:
        return await registry.get(body.model, body.version)
    engine = await engine_for(registry, body.model, body.version, None if asked.starts else asked.id)
    refuse_stateless(engine)
    return engine


async def answer(body: PredictRequest, engine: Engine) -> bytes:
    """The whole answer to a request, as JSON."""
    if isinstance(engine, EncoderEngine):
        return await encoded.answer(body, engine)
    if said := sorted(body.parameters.model_fields_set & {"truncate", "prompt"}):
        raise InputError(f"{said} are for encoders, and model {body.model!r} is none; leave them out")
    if isinstance(engine, SequenceEngine):
        return await sequences.answer(body, engine)
    if isinstance(engine, TensorEngine):
        return await _run(body, engine)
    assert isinstance(engine, LanguageEngine)
    return (await _speak(body, engine)).model_dump_json(exclude_none=True).encode()


async def recall(body: PredictRequest, engine: Engine, memory: Memory) -> None:
    """Put the layers in the place of a depth, and remembered chains in the place of "memory"."""
    if body.chain != FULL or body.depth is not None:
        inputs = _inputs(body, engine)
        body.chain = await memory.resolve(body.chain_of(engine), engine, inputs)  # type: ignore[assignment]


def _inputs(body: PredictRequest, engine: Engine) -> object:
    """The inputs as the engine takes them."""
    if isinstance(engine, EncoderEngine):
        reading = encoded.reading_of(body.parameters)
        return [engine.tokens(one, reading) for one in encoded.inputs_of(body)]
    return _prompts(body) if isinstance(engine, LanguageEngine) else body.inputs


async def _speak(body: PredictRequest, engine: LanguageEngine) -> PredictResponse:
    if body.parameters.mode == "score":
        return _scored(body, engine, await _score(body, engine))
    prompts = _prompts(body)
    if body.parameters.mode == "embed":
        return _embedded(engine, await engine.embed(prompts, body.chain))
    return _generated(body, engine, await engine.generate(prompts, body.chain, _sampling(body.parameters)))


async def _run(body: PredictRequest, engine: TensorEngine) -> bytes:
    """The answer as `PredictResponse` describes it; pydantic would look at every number."""
    if body.parameters.mode != "generate" or body.targets:
        raise InputError(f"model {body.model!r} has no text to score or embed; leave 'mode' and 'targets' out")
    done = await engine.infer(body.inputs, body.chain)
    rows: list[dict[str, object]] = [{} for _ in done.chains]
    for name, array in done.outputs.items():
        for row, values in zip(rows, array, strict=True):
            row[name] = values
    visits = [chain.layers for chain in done.chains]
    cost = {layers: _cost(layers, engine, done.timing) for layers in set(visits)}
    executed = 0 if done.timing.is_cached else sum(map(len, visits))
    document = {
        **noted(),
        "model": engine.manifest.name,
        "version": engine.manifest.version,
        "request_id": request_id.get(),
        "outputs": [{"outputs": row, **cost[layers]} for row, layers in zip(rows, visits, strict=True)],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "layer_evaluations": executed},
        "timing": {"queue_ms": 1000 * done.timing.queue_s, "compute_ms": 1000 * done.timing.compute_s},
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _cost(layers: tuple[int, ...], engine: TensorEngine, timing: Timing) -> dict[str, object]:
    executed = 0 if timing.is_cached else len(layers)
    return {"chain": layers, "layers_executed": executed, "layers_full": engine.num_layers}


def _prompts(body: PredictRequest) -> list[str | list[int]]:
    if body.targets is not None and body.parameters.mode != "score":
        raise InputError("targets came without mode 'score'; set parameters.mode, or leave them out")
    if isinstance(body.inputs, dict):
        raise InputError("a language model takes a list of texts or of token-id lists")
    prompts = body.inputs if isinstance(body.inputs, list) else body.inputs.tolist()
    for place, prompt in enumerate(prompts):
        is_ids = isinstance(prompt, list) and all(type(token_id) is int for token_id in prompt)
        if not (isinstance(prompt, str) or is_ids):
            raise InputError(f"input {place} is neither a text nor a list of token ids; send one of these")
    return prompts


def _sampling(parameters: Parameters) -> Sampling:
    return Sampling(
        max_new_tokens=parameters.max_new_tokens,
        temperature=parameters.temperature,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        seed=parameters.seed,
        stop=tuple(parameters.stop),
        logprobs=parameters.logprobs,
    )


async def _score(body: PredictRequest, engine: LanguageEngine) -> list[Judgement]:
    prompts, targets = _prompts(body), body.targets or []
    if len(targets) != len(prompts):
        raise InputError(f"{len(targets)} targets came with {len(prompts)} inputs; send one per input")
    chains = engine.affordable_chains(body.chain, len(prompts))
    wanted = [engine.target(target) for target in targets]
    pairs = [(engine.encode(prompt, len(one)), one) for prompt, one in zip(prompts, wanted, strict=True)]
    return await engine.score(pairs, chains)


def _generated(body: PredictRequest, engine: LanguageEngine, done: Sequence[Completion]) -> PredictResponse:
    outputs = [_text_output(one, engine, body.parameters.logprobs) for one in done]
    usage = Usage(
        prompt_tokens=sum(one.num_prompt_tokens for one in done),
        cached_tokens=sum(one.num_cached_tokens for one in done) or None,
        completion_tokens=sum(len(one.token_ids) for one in done),
        layer_evaluations=sum(one.layer_evaluations for one in done),
    )
    return _response(engine, outputs, usage, [one.timing for one in done])


def _text_output(done: Completion, engine: LanguageEngine, logprobs: int | None) -> TextOutput:
    return TextOutput(
        text=done.text,
        token_ids=list(done.token_ids),
        finish_reason=done.finish_reason,
        logprob=done.logprob,
        logprobs=None if logprobs is None else [_token(choice, engine) for choice in done.choices],
        chain=list(done.chain.layers),
        layers_executed=done.layers_executed,
        layers_full=done.layers_full,
    )


def _token(choice: Choice, engine: LanguageEngine) -> TokenLogprob:
    def named(token_id: int, logprob: float) -> Token:
        return Token(token_id=token_id, token=engine.tokenizer.token(token_id), logprob=logprob)

    chosen = named(choice.token_id, choice.logprob)
    return TokenLogprob(**chosen.model_dump(), top=[named(*alternative) for alternative in choice.top])


def _scored(body: PredictRequest, engine: LanguageEngine, judged: Sequence[Judgement]) -> PredictResponse:
    outputs = [
        TextOutput(
            text=engine.tokenizer.decode(one.token_ids),
            token_ids=list(one.token_ids),
            logprob=sum(one.logprobs),
            logprobs=list(one.logprobs),
            matches=one.matches,
            chain=list(one.chain.layers),
            layers_executed=one.layers_executed,
            layers_full=one.layers_full,
        )
        for one in judged
    ]
    return _response(engine, outputs, _reading(judged), [one.timing for one in judged])


def _embedded(engine: LanguageEngine, done: Sequence[Embedding]) -> PredictResponse:
    outputs = [
        EmbeddingOutput(
            embedding=one.vector.tolist(),
            chain=list(one.chain.layers),
            layers_executed=one.layers_executed,
            layers_full=one.layers_full,
        )
        for one in done
    ]
    return _response(engine, outputs, _reading(done), [one.timing for one in done])


def _reading(done: Sequence[Judgement | Embedding]) -> Usage:
    """What it cost to read texts and continue none."""
    return Usage(
        prompt_tokens=sum(one.num_prompt_tokens for one in done),
        layer_evaluations=sum(one.layer_evaluations for one in done),
    )


def _response(
    engine: Engine,
    outputs: list[TextOutput] | list[EmbeddingOutput],
    usage: Usage,
    timings: Sequence[Timing],
) -> PredictResponse:
    return PredictResponse(
        model=engine.manifest.name,
        version=engine.manifest.version,
        request_id=request_id.get(),
        outputs=outputs,
        usage=usage,
        timing=TimingOut(
            queue_ms=1000 * max(timing.queue_s for timing in timings),
            compute_ms=1000 * max(timing.compute_s for timing in timings),
        ),
        **noted(),
    )


async def _events(body: PredictRequest, engine: Engine) -> AsyncGenerator[bytes]:
    if not isinstance(engine, LanguageEngine) or body.parameters.mode != "generate" or len(body.inputs) != 1:
        raise InputError("only the generation of one text can be streamed; send one input to a language model")
    (prompt,) = _prompts(body)
    async for one in engine.stream(prompt, body.chain, _sampling(body.parameters)):
        if isinstance(one, Completion):
            yield sse.event("done", _generated(body, engine, [one]).model_dump(exclude_none=True))
        else:
            text, choice = one
            yield sse.event("token", {"text": text, "token_id": choice.token_id, "logprob": choice.logprob})
