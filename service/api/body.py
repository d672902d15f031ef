"""JSON routes: bodies bounded in bytes and parsed by orjson, work that stops when the client leaves."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from models.errors import LengthError
from service.problems import UnsupportedTypeError

# Past a body that is too large so much more is read and thrown away, so that the client gets to see the answer.
_DISCARD_FACTOR = 16
# Nobody reads it; logs and metrics do (the status nginx uses).
_CLIENT_LEFT = 499


class JsonRequest(Request):
    """A request whose body is read once, by orjson."""

    async def json(self) -> Any:
        """The parsed body. Raises orjson's JSONDecodeError, which FastAPI turns into a validation error."""
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route that reads JSON within `app.state.settings.max_body_bytes`, and is cancelled when its client leaves."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            read = JsonRequest(request.scope, request.receive)
            if request.method == "POST":
                _check_type(read)
                await read_body(read, request.app.state.settings.max_body_bytes)
            return await while_connected(read, handler(read))

        return bounded


class DirectRoute(JsonRoute):
    """A route whose function takes nothing but `body`, a pydantic model, and `request`.

    FastAPI describes it, but does not resolve its arguments, for that costs several times what a small model does.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        model: type[BaseModel] = get_type_hints(self.endpoint)["body"]

        async def direct(request: Request) -> Response:
            _check_type(request)
            read = JsonRequest(request.scope, request.receive)
            await read_body(read, request.app.state.settings.max_body_bytes)
            body = _validated(model, await read.body())
            return await while_connected(read, self.endpoint(body, read))

        return direct


def _validated(model: type[BaseModel], content: bytes) -> BaseModel:
    """The body as FastAPI would have read it. Raises RequestValidationError."""
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return model.model_validate(orjson.loads(content))
    except orjson.JSONDecodeError as error:
        at, reason = ("body", error.pos), {"error": error.msg}
        raise RequestValidationError([{"type": "json_invalid", "loc": at, "input": {}, "ctx": reason}]) from error
    except ValidationError as error:
        found = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        raise RequestValidationError(found) from error


async def while_connected(request: Request, handling: Coroutine[Any, Any, Response]) -> Response:
    """The response, unless the client leaves before: then the work ends too. The body must have been read."""
    task = asyncio.ensure_future(handling)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else Response(status_code=_CLIENT_LEFT)
    finally:
        task.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    """Return once the client has closed its connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedTypeError(f"the body came as {kind or 'no type at all'!r}; send application/json")


async def read_body(request: JsonRequest, limit: int) -> None:
    """Read a body of at most `limit` bytes into the request. Raises LengthError."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * _DISCARD_FACTOR:
            break
    if size > limit:
        raise LengthError(
            f"the body has more than {limit} bytes; send fewer inputs at a time, or raise FATHOM_MAX_BODY_BYTES"
        )
    request._body = b"".join(chunks)
