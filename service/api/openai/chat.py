"""POST /v1/chat/completions: a conversation, written as a prompt by the model's own template, and its answers."""

import time

from fastapi import APIRouter
from starlette.responses import Response

from models.errors import InputError
from service.api import sse
from service.api.body import JsonRoute
from service.api.openai.answers import ChatChunk, ChatResponse
from service.api.openai.choices import chat_choice_of, usage_of
from service.api.openai.completions import completions_of
from service.api.openai.models import language_engine
from service.api.openai.requests import ChatRequest
from service.api.openai.samples import check_choices, samples_of
from service.api.openai.streaming import ChatSpeaker, events
from service.api.responses import STREAM
from service.api.state import MemoryState, RegistryState, SettingsState
from service.engine.language import LanguageEngine
from service.logs import request_id

router = APIRouter(prefix="/v1", route_class=JsonRoute)


@router.post("/chat/completions", response_model=ChatResponse, responses=STREAM)
async def chat(body: ChatRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState) -> Response:
    """Answer a conversation."""
    check_choices(1, body.n, settings)
    engine = await language_engine(registry, body.model, body.version)
    prompts: list[str | list[int]] = [_prompt(body, engine)]
    chain = await memory.resolve(body.chain_of(engine), engine, prompts)
    samples = samples_of(body, prompts, chain, engine, body.limit, body.num_alternatives)
    identifier, created, name = f"chatcmpl-{request_id.get()}", int(time.time()), engine.manifest.name
    if body.stream:
        answer = ChatChunk(id=identifier, created=created, model=name, choices=[])
        return await sse.stream(events(answer, [ChatSpeaker(sample, engine) for sample in samples], body, engine))
    done = await completions_of(samples, body.n, engine)
    choices = [chat_choice_of(one, sample, engine) for one, sample in zip(done, samples, strict=True)]
    whole = ChatResponse(id=identifier, created=created, model=name, choices=choices, usage=usage_of(done, body.n))
    return Response(whole.model_dump_json(), media_type="application/json")


def _prompt(body: ChatRequest, engine: LanguageEngine) -> list[int]:
    """Token ids of the conversation, ready for the model's turn. Raises InputError."""
    if engine.chat is None:
        raise InputError(
            f"model {engine.manifest.name!r} has no chat template to turn {len(body.messages)} messages into a prompt; "
            "export it with a chat_template.jinja beside its tokenizer, or POST /v1/completions with a prompt"
        )
    text = engine.chat.render([message.for_template() for message in body.messages])
    return list(engine.tokenizer.encode(text, has_special_tokens=True))
