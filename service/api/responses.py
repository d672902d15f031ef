"""What routes declare beside their own answers: refusals as problem documents, and streams."""

from typing import Any, TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel, Field

Responses: TypeAlias = dict[int | str, dict[str, Any]]


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(description="the kind of problem, as a relative reference")
    title: str
    status: int
    detail: str = Field(description="value, limit and remedy")
    instance: str | None = Field(None, description="the request id as an URN")
    errors: list[dict[str, str]] = Field(default_factory=list, description="field and reason of what does not validate")


# By reference instead of as a model: FastAPI would say that it has the type of the route's own answers.
_PROBLEM: dict[str, Any] = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
}
# Of routes whose dialect has no error shape of its own.
PROBLEMS: Responses = {"4XX": _PROBLEM, "5XX": _PROBLEM}
_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]"}},
    "required": ["data"],
}
# Of routes that may answer with server-sent events.
STREAM: Responses = {200: {"content": {"text/event-stream": {"itemSchema": _EVENT}}}}


class DescribedApp(FastAPI):
    """An application whose description knows `Problem`."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document
