"""POST /v1/embeddings: an encoder's embedding of each input, or what a language model holds of it after its chain.

The latter is the mean of residual-stream states, of length 1; no sentence embedding that was trained to be one.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastapi import APIRouter
from numpy.typing import NDArray

from models.chain import Chain
from models.errors import InputError, LengthError
from service.api.body import JsonRoute
from service.api.openai.answers import EmbeddingEntry, EmbeddingRan, EmbeddingResponse, EmbeddingUsage
from service.api.openai.models import embedding_engine
from service.api.openai.requests import EmbeddingRequest
from service.api.openai.samples import prompts_of
from service.api.state import MemoryState, RegistryState, SettingsState
from service.cola.memory import Memory
from service.engine.encoder import EncoderEngine, Reading
from service.engine.engine import Engine
from service.engine.language import LanguageEngine

Array: TypeAlias = NDArray[Any]

router = APIRouter(prefix="/v1", route_class=JsonRoute)


@dataclass(frozen=True, slots=True)
class _Embedded:
    """The vector [D] float32 of one input, and what it cost."""

    vector: Array
    chain: Chain
    layers_executed: int
    layers_full: int
    num_tokens: int


@router.post("/embeddings")
async def embed(
    body: EmbeddingRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState
) -> EmbeddingResponse:
    """Embed every input along its chain."""
    inputs = prompts_of(body.input)
    if len(inputs) > settings.max_inputs:
        raise LengthError(f"{len(inputs)} inputs came; one request takes {settings.max_inputs}; send several")
    engine = await embedding_engine(registry, body.model, body.version)
    embed_all = _encoded if isinstance(engine, EncoderEngine) else _held
    done = await embed_all(body, inputs, engine, memory)  # type: ignore[arg-type]
    _check_size(body, done[0])
    num_tokens = sum(one.num_tokens for one in done)
    return EmbeddingResponse(
        data=[_entry(index, one, body.encoding_format == "base64", engine) for index, one in enumerate(done)],
        model=engine.manifest.name,
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


async def _held(
    body: EmbeddingRequest, inputs: Sequence[str | Sequence[int]], engine: LanguageEngine, memory: Memory
) -> list[_Embedded]:
    if body.truncate is not None or body.prompt is not None:
        raise InputError(f"model {body.model!r} is no encoder; leave 'truncate' and 'prompt' out")
    done = await engine.embed(inputs, await memory.resolve(body.chain_of(engine), engine, inputs))
    return [
        _Embedded(one.vector, one.chain, one.layers_executed, one.layers_full, one.num_prompt_tokens) for one in done
    ]


async def _encoded(
    body: EmbeddingRequest, inputs: Sequence[str | Sequence[int]], engine: EncoderEngine, memory: Memory
) -> list[_Embedded]:
    reading = Reading(bool(body.truncate), body.prompt)
    read = [engine.tokens(one, reading) for one in inputs]
    done = await engine.encode(read, await memory.resolve(body.chain_of(engine), engine, read))
    return [_Embedded(one.values, one.chain, one.layers_executed, one.layers_full, one.num_tokens) for one in done]


def _check_size(body: EmbeddingRequest, first: _Embedded) -> None:
    size = len(first.vector)
    if body.dimensions not in (None, size):
        raise InputError(f"dimensions is {body.dimensions}; the model's embeddings have {size}, so leave it out")


def _entry(index: int, done: _Embedded, as_bytes: bool, engine: Engine) -> EmbeddingEntry:
    raw = done.vector.astype("<f4")
    return EmbeddingEntry(
        index=index,
        embedding=base64.b64encode(raw.tobytes()).decode() if as_bytes else raw.tolist(),
        fathom=EmbeddingRan(
            version=engine.manifest.version,
            chain=list(done.chain.layers),
            layers_executed=done.layers_executed,
            layers_full=done.layers_full,
        ),
    )
