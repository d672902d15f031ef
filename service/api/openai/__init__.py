"""The OpenAI dialect: what clients of that API speak, for language models."""

from fastapi import APIRouter

from service.api.openai import chat, completions, embeddings, models
from service.api.openai.answers import ErrorBody

_ERRORS: dict[int | str, dict[str, type]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}

router = APIRouter(tags=["openai"], responses=_ERRORS)
# The prefix is on each of them: the route label of metrics would not hold one that is put on here.
for module in (models, completions, chat, embeddings):
    router.include_router(module.router)
