"""POST /v1/chat/completions: a clear refusal. Artifacts carry no chat template, and none is made up."""

from typing import NoReturn

from fastapi import APIRouter

from models.errors import InputError
from service.api.body import JsonRoute
from service.api.openai.answers import ErrorBody
from service.api.openai.models import language_engine
from service.api.openai.requests import ChatRequest
from service.api.state import RegistryState

router = APIRouter(prefix="/v1", route_class=JsonRoute)


@router.post("/chat/completions", status_code=400, response_model=ErrorBody, response_description="No chat template")
async def chat(body: ChatRequest, registry: RegistryState) -> NoReturn:
    """Say that the model has no chat template."""
    engine = language_engine(registry, body.model, body.version)
    raise InputError(
        f"model {engine.manifest.name!r} has no chat template to turn {len(body.messages)} messages into a prompt; "
        "write the prompt yourself and POST /v1/completions"
    )
