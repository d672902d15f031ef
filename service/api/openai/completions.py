"""POST /v1/completions: every prompt continued `n` times, at once or as a stream."""

import asyncio
import time

from fastapi import APIRouter
from starlette.responses import Response

from service.api import sse
from service.api.body import JsonRoute
from service.api.openai.answers import CompletionResponse
from service.api.openai.choices import choice_of, usage_of
from service.api.openai.models import language_engine
from service.api.openai.requests import CompletionRequest
from service.api.openai.samples import Sample, check_choices, prompts_of, samples_of
from service.api.openai.streaming import Speaker, events
from service.api.responses import STREAM
from service.api.state import MemoryState, RegistryState, SettingsState
from service.engine.language import Completion, LanguageEngine
from service.logs import request_id

router = APIRouter(prefix="/v1", route_class=JsonRoute)


@router.post("/completions", response_model=CompletionResponse, responses=STREAM)
async def complete(
    body: CompletionRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState
) -> Response:
    """Continue every prompt."""
    prompts = prompts_of(body.prompt)
    check_choices(len(prompts), body.n, settings)
    engine = await language_engine(registry, body.model, body.version)
    chain = await memory.resolve(body.chain_of(engine), engine, prompts)
    samples = samples_of(body, prompts, chain, engine, body.max_tokens, body.logprobs)
    answer = CompletionResponse(
        id=f"cmpl-{request_id.get()}", created=int(time.time()), model=engine.manifest.name, choices=[]
    )
    if body.stream:
        return await sse.stream(events(answer, [Speaker(sample, engine) for sample in samples], body, engine))
    done = await completions_of(samples, body.n, engine)
    answer.choices = [choice_of(one, sample, engine) for one, sample in zip(done, samples, strict=True)]
    answer.usage = usage_of(done, body.n)
    return Response(answer.model_dump_json(), media_type="application/json")


async def completions_of(samples: list[Sample], n: int, engine: LanguageEngine) -> list[Completion]:
    """The completion of each sample. Those that share a seed are queued together, all or none."""
    tasks = [asyncio.ensure_future(_drawn(samples[choice::n], engine)) for choice in range(n)]
    try:
        draws = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [one for of_prompt in zip(*draws, strict=True) for one in of_prompt]


async def _drawn(samples: list[Sample], engine: LanguageEngine) -> list[Completion]:
    return await engine.generate(
        [sample.prompt for sample in samples],
        [sample.chain for sample in samples],
        samples[0].sampling,
    )
