"""JSON routes: bodies bounded in bytes and parsed by orjson, work that stops when the client leaves."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from models.errors import LengthError
from service.problems import UnsupportedTypeError

# Past a body that is too large so much more is read and thrown away, so that the client gets to see the answer.
_DISCARD_FACTOR = 16
# Nobody reads it; logs and metrics do (the status nginx uses).
_CLIENT_LEFT = 499
_WATCH_AFTER_S = 0.02


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
                check_type(read)
                await read_body(read, request.app.state.settings.max_body_bytes)
            return await while_connected(read, handler(read))

        return bounded


async def while_connected(request: Request, handling: Coroutine[Any, Any, Response]) -> Response:
    """The response, unless the client leaves before: then the work ends too. The body must have been read.

    Whoever is answered at once is not watched, for watching costs as much as a small model.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    watch = _Watch(request, task)
    timer = loop.call_later(_WATCH_AFTER_S, watch.begin)
    try:
        return await handling
    except asyncio.CancelledError:
        if watch.has_left and not task.uncancel():
            return Response(status_code=_CLIENT_LEFT)
        raise
    finally:
        timer.cancel()
        watch.end()


class _Watch:
    """Cancels a task once the client of its request has closed the connection."""

    def __init__(self, request: Request, task: "asyncio.Task[Any]") -> None:
        self._request, self._task = request, task
        self._watching: asyncio.Task[None] | None = None
        self.has_left = False

    def begin(self) -> None:
        self._watching = asyncio.ensure_future(self._watch())

    def end(self) -> None:
        if self._watching:
            self._watching.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        self._task.cancel()


def check_type(request: Request) -> None:
    """Raise UnsupportedTypeError unless the body came as JSON."""
    sent = next((value for name, value in request.scope["headers"] if name == b"content-type"), b"")
    kind = sent.decode("latin-1").partition(";")[0].strip().lower()
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
