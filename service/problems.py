"""Errors as `application/problem+json` (RFC 9457): the one table from our errors to status codes.

A dialect whose protocol has an error shape of its own gets that shape instead.
"""

import contextvars
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from models.errors import (
    ArtifactError,
    BackendError,
    ChainError,
    ConflictError,
    DeadlineError,
    FathomError,
    FullError,
    GoneError,
    GroupLostError,
    InputError,
    LengthError,
    ModelError,
    NotFoundError,
    OverloadError,
    UnavailableError,
    UnknownModelError,
    VerifierError,
)
from service.logs import request_id

_log = logging.getLogger("fathom.http")
_RETRY_AFTER_S = 1
_METHODS = ("DELETE", "GET", "POST")

_IN_THE_LOG = "the log has the rest under this request id"


class UnsupportedTypeError(FathomError):
    """A body of another content type than the route reads."""


# Most specific first: the first class that fits wins.
_TABLE: Sequence[tuple[type[FathomError], int, str]] = (
    (ChainError, 422, "The chain does not fit the model"),
    (InputError, 422, "The input does not fit the model"),
    (LengthError, 413, "The input is too long"),
    (UnsupportedTypeError, 415, "Unsupported content type"),
    (UnknownModelError, 404, "No such model"),
    (NotFoundError, 404, "No such record"),
    (GoneError, 410, "The session is over"),
    (ConflictError, 409, "The session is not free for this"),
    (FullError, 429, "Too many sessions"),
    (OverloadError, 429, "The queue is full"),
    (DeadlineError, 504, "The time is over"),
    (GroupLostError, 503, "The ranks were lost"),
    (UnavailableError, 503, "Not serving right now"),
    (ArtifactError, 409, "The artifact cannot be loaded"),
    (VerifierError, 502, "The verifier failed"),
    (ModelError, 500, "The model failed"),
    (BackendError, 500, "The runtime failed"),
)

# The path of the request that is being answered: it names the dialect.
request_path: contextvars.ContextVar[str] = contextvars.ContextVar("request_path", default="/")


def problem(status: int, title: str, detail: str, **members: object) -> Response:
    """One problem document; `members` are added to it. The type is the kind of problem as a relative reference."""
    headers = {"retry-after": str(_RETRY_AFTER_S)} if status == 503 else {}
    slug = title.lower().replace(" ", "-")
    body = {"type": f"/problems/{slug}", "title": title, "status": status, "detail": detail, **members}
    path = request_path.get()
    if shape := next((shape for pattern, shape in _SHAPES if pattern.match(path)), None):
        status, shaped = shape(body)
        return Response(orjson.dumps(shaped), status, headers, "application/json")
    if identifier := request_id.get():
        body["instance"] = f"urn:request:{identifier}"
    return Response(orjson.dumps(body), status, headers, "application/problem+json")


def facts_of(error: Exception) -> tuple[int, str, str]:
    """Status, title and detail of an error; what is not ours says nothing but the request id."""
    for kind, status, title in _TABLE:
        if isinstance(error, kind):
            return status, title, _IN_THE_LOG if kind is BackendError else str(error)
    return 500, "Unforeseen error", _IN_THE_LOG


def problem_of(error: Exception) -> Response:
    """The answer to an error."""
    if isinstance(error, BackendError):
        _log.error("request failed", exc_info=error)
    if isinstance(error, RequestValidationError):
        return _malformed(error)
    if not isinstance(error, OverloadError | GroupLostError):
        return problem(*facts_of(error))
    retry_after_s = max(1, math.ceil(error.retry_after_s))
    # In the document as well: a stream that ends with it has sent its headers.
    members: dict[str, Any] = {"retry_after_s": retry_after_s} if isinstance(error, GroupLostError) else {}
    response = problem(*facts_of(error), **members)
    response.headers["retry-after"] = str(retry_after_s)
    return response


def add_handlers(app: FastAPI) -> None:
    """Answer every foreseen error of `app` with a problem document; `service.access` answers the rest."""

    @app.exception_handler(FathomError)
    @app.exception_handler(RequestValidationError)
    async def foreseen(request: Request, error: Exception) -> Response:
        return problem_of(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        response = problem(error.status_code, str(error.detail), f"{request.method} {request.url.path}: {error.detail}")
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_methods_of(request))
        return response


def _methods_of(request: Request) -> list[str]:
    """What a path can be asked for, by the first router that knows it; of several routes that names only one's."""
    known = next(route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return [method for method in _METHODS if known.matches({**request.scope, "method": method})[0] is Match.FULL]


def _malformed(error: RequestValidationError) -> Response:
    errors = [_field(entry) for entry in error.errors()]
    return problem(422, "The request is malformed", _named(errors), errors=errors[:20])


def _openai(document: Mapping[str, Any]) -> tuple[int, dict[str, object]]:
    """OpenAI's error object. What does not fit a model is 400 there; where OpenAI has a code, it is used."""
    status = 400 if document["status"] == 422 else document["status"]
    slug = document["type"].removeprefix("/problems/")
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    error = {
        "message": f"{document['title']}: {document['detail']}",
        "type": kind,
        "param": next((entry["field"] for entry in document.get("errors", ())), None),
        "code": _OPENAI_CODES.get(slug, slug.replace("-", "_")),
    }
    return status, {"error": error}


def _kserve(document: Mapping[str, Any]) -> tuple[int, dict[str, object]]:
    """The error object of KServe's protocols, the Open Inference Protocol among them."""
    return document["status"], {"error": document["detail"]}


_OPENAI_CODES = {"no-such-model": "model_not_found", "the-queue-is-full": "rate_limit_exceeded"}
# Status and body in dialects that have an error shape of their own, from the problem document; the first path that fits
# wins. Under /v1 two dialects live.
_SHAPES: Sequence[tuple[re.Pattern[str], Callable[[Mapping[str, Any]], tuple[int, dict[str, object]]]]] = (
    (re.compile(r"/v1/models/[^/]+:(predict|explain)$"), _kserve),
    (re.compile(r"/v1(/|$)"), _openai),
    (re.compile(r"/v2(/|$)"), _kserve),
)


def malformed(error: ValidationError) -> InputError:
    """A body that does not validate, as an error of ours that names fields and reasons."""
    return InputError(_named([_field(entry) for entry in error.errors()]))


def _named(errors: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{entry['field']}: {entry['reason']}" for entry in errors[:3])


def _field(entry: Any) -> dict[str, str]:
    if entry["type"] == "json_invalid":
        return {"field": "body", "reason": f"no valid JSON at character {entry['loc'][-1]}: {entry['ctx']['error']}"}
    place = ".".join(str(part) for part in entry["loc"] if part != "body") or "body"
    if entry["type"] == "extra_forbidden":
        return {"field": place, "reason": "there is no such field; GET /docs lists those there are"}
    value = entry["input"]
    came = f"; {value!r:.60} came" if isinstance(value, str | int | float) else ""
    return {"field": place, "reason": f"{entry['msg']}{came}"}
