"""What surrounds every call: request id, log line and metrics, refusal while draining, errors as status codes."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from models.errors import GroupLostError, OverloadError, UnavailableError
from service.access import usable_id
from service.callers import read_terms
from service.engine.terms import Told, set_terms
from service.lifecycle import Lifecycle
from service.logs import request_id
from service.metrics import Metrics
from service.problems import facts_of
from service.repository.slots import Holding

_log, _access_log = logging.getLogger("fathom.grpc"), logging.getLogger("fathom.access")
_REQUEST_ID, _RETRY_AFTER = "x-request-id", "retry-after"
# From the one table of errors to gRPC's codes.
_CODES: dict[int, grpc.StatusCode] = {
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.OUT_OF_RANGE,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
Unary: TypeAlias = Callable[[Any], Awaitable[Message]]
Stream: TypeAlias = Callable[[AsyncIterator[Any]], AsyncGenerator[Message]]


class Calls:
    """Puts the same around every method."""

    def __init__(self, metrics: Metrics, lifecycle: Lifecycle, max_request_s: float | None = None) -> None:
        self._metrics, self._lifecycle, self._max_request_s = metrics, lifecycle, max_request_s

    def unary(self, path: str, method: Unary, always: bool = False) -> Callable[[Any, Any], Awaitable[Message]]:
        """A method with one request and one response; `always` answers while draining, too."""

        async def call(request: Any, context: Any) -> Message:
            with self._noted(path, context) as noted:
                try:
                    self._check_open(always)
                    self._set_terms(context)
                    with Holding():
                        return await method(request)
                except Exception as error:
                    noted.code = code_of(error)
                    await _abort(context, error)
            raise AssertionError("an aborted call went on")

        return call

    def stream(self, path: str, method: Stream) -> Callable[[Any, Any], AsyncIterator[Message]]:
        """A method with many requests and many responses."""

        async def call(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Message]:
            with self._noted(path, context) as noted:
                try:
                    self._check_open(always=False)
                    self._set_terms(context)
                    async with aclosing(method(requests)) as responses:
                        async for response in responses:
                            yield response
                except Exception as error:
                    noted.code = code_of(error)
                    await _abort(context, error)

        return call

    def _check_open(self, always: bool) -> None:
        if self._lifecycle.is_draining and not always:
            raise UnavailableError("this server is shutting down; send the request to another, or again in a moment")

    def _set_terms(self, context: Any) -> None:
        """Client, priority and deadline from the metadata, which has the names of HTTP's headers."""
        metadata = context.invocation_metadata() or ()
        headers = [(name.encode(), value.encode()) for name, value in metadata if isinstance(value, str)]
        scope = {"headers": headers, "client": (context.peer().rpartition(":")[0],)}
        terms = read_terms(scope, time.perf_counter(), self._max_request_s, Told())
        set_terms(terms.tightened(context.time_remaining(), None))

    @contextmanager
    def _noted(self, path: str, context: Any) -> "Iterator[_Noted]":
        started, noted = time.perf_counter(), _Noted()
        identifier = usable_id(str(dict(context.invocation_metadata() or ()).get(_REQUEST_ID, "")))
        context.set_trailing_metadata(((_REQUEST_ID, identifier),))
        request_id.set(identifier)  # a call has a task, and so a context, of its own
        try:
            yield noted
        except asyncio.CancelledError:  # the client left, or its deadline passed
            noted.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(path, noted.code.name).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            fields = {"path": path, "status": noted.code.name, "seconds": round(seconds, 6)}
            _access_log.info("call", extra={"fields": fields})


class _Noted:
    code = grpc.StatusCode.OK


def code_of(error: Exception) -> grpc.StatusCode:
    """The status code of an error."""
    return _CODES.get(facts_of(error)[0], grpc.StatusCode.INTERNAL)


def said_of(error: Exception) -> str:
    """What a client is told of an error; the log has the rest."""
    if code_of(error) is grpc.StatusCode.INTERNAL:
        _log.error("call failed", exc_info=error)
    return facts_of(error)[2]


async def _abort(context: Any, error: Exception) -> None:
    if isinstance(error, OverloadError | GroupLostError):
        after = (_RETRY_AFTER, str(max(1, math.ceil(error.retry_after_s))))
        context.set_trailing_metadata((*context.trailing_metadata(), after))
    await context.abort(code_of(error), said_of(error))
