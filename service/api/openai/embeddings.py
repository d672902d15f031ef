"""POST /v1/embeddings: what a language model holds of each input after its chain.

The mean of residual-stream states, of length 1; no sentence embedding that was trained to be one.
"""

import base64

from fastapi import APIRouter

from models.errors import InputError, LengthError
from service.api.body import JsonRoute
from service.api.openai.answers import EmbeddingEntry, EmbeddingRan, EmbeddingResponse, EmbeddingUsage
from service.api.openai.models import language_engine
from service.api.openai.requests import EmbeddingRequest
from service.api.openai.samples import prompts_of
from service.api.state import MemoryState, RegistryState, SettingsState
from service.engine.language import Embedding, LanguageEngine

router = APIRouter(prefix="/v1", route_class=JsonRoute)


@router.post("/embeddings")
async def embed(
    body: EmbeddingRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState
) -> EmbeddingResponse:
    """Embed every input along its chain."""
    inputs = prompts_of(body.input)
    if len(inputs) > settings.max_inputs:
        raise LengthError(f"{len(inputs)} inputs came; one request takes {settings.max_inputs}; send several")
    engine = await language_engine(registry, body.model, body.version)
    done = await engine.embed(inputs, await memory.resolve(body.chain_of(engine), engine, inputs))
    _check_size(body, done[0])
    num_tokens = sum(one.num_prompt_tokens for one in done)
    return EmbeddingResponse(
        data=[_entry(index, one, body.encoding_format == "base64", engine) for index, one in enumerate(done)],
        model=engine.manifest.name,
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _check_size(body: EmbeddingRequest, first: Embedding) -> None:
    size = len(first.vector)
    if body.dimensions not in (None, size):
        raise InputError(f"dimensions is {body.dimensions}; the model's embeddings have {size}, so leave it out")


def _entry(index: int, done: Embedding, as_bytes: bool, engine: LanguageEngine) -> EmbeddingEntry:
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
