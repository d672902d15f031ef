"""Server-sent events, and errors after the first byte as a last event."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import orjson
from starlette.responses import StreamingResponse

from service.problems import problem_of

_log = logging.getLogger("fathom.http")


def event(name: str, data: object) -> bytes:
    """One event, its data as JSON."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


async def stream(events: AsyncGenerator[bytes]) -> StreamingResponse:
    """Answer with `events`; what fails before the first is raised, what fails later becomes the event `problem`."""
    first = await anext(events)

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(events):  # a client that leaves ends the work at once
            yield first
            try:
                async for one in events:
                    yield one
            except Exception as error:
                told = problem_of(error)
                if told.status_code == 500:
                    _log.error("a stream failed after its first event", exc_info=error)
                yield b"event: problem\ndata: " + bytes(told.body) + b"\n\n"

    return StreamingResponse(body(), media_type="text/event-stream", headers={"cache-control": "no-store"})
