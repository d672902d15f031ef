"""What surrounds every request: its id, log line and metrics, refusal while draining, and the last-resort answer."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterator

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import InputError
from service.callers import read_terms
from service.engine.terms import Told, reset_terms, set_terms
from service.lifecycle import Lifecycle
from service.logs import request_id
from service.metrics import Metrics
from service.problems import problem, problem_of, request_path
from service.repository.slots import Holding

_log = logging.getLogger("fathom.access")
_ID_HEADER = b"x-request-id"
_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Asked for every few seconds by machines, and answered whatever else is going on.
_OPERATIONS = ("/health", "/metrics", "/v2/health")


class AccessMiddleware:
    """Pure ASGI, so that streaming answers pass through untouched."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, lifecycle: Lifecycle, max_request_s: float | None = None
    ) -> None:
        self._app, self._metrics, self._lifecycle = app, metrics, lifecycle
        self._max_request_s = max_request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        identifier = _request_id(scope)
        token, path_token = request_id.set(identifier), request_path.set(scope["path"])
        status, told = 0, Told()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers(identifier, told)]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, started, told)
        except ClientDisconnect:
            pass  # nobody is there to hear the answer
        except asyncio.CancelledError:
            if status or not self._lifecycle.is_draining:
                raise
            await _refusal("the time to finish accepted requests is over")(scope, receive, send_with_id)
        except Exception as error:
            _log.exception("unforeseen error")
            if not status:
                await problem_of(error)(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - started)
            request_id.reset(token)
            request_path.reset(path_token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, arrived_at: float, told: Told) -> None:
        if self._lifecycle.is_draining and not scope["path"].startswith(_OPERATIONS):
            await _refusal("this server is shutting down")(scope, receive, send)
            return
        try:
            terms = read_terms(scope, arrived_at, self._max_request_s, told)
        except InputError as error:
            await problem_of(error)(scope, receive, send)
            return
        token = set_terms(terms)
        try:
            with Holding():
                await self._app(scope, receive, send)
        finally:
            reset_terms(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        outcome = str(status or "disconnected")
        self._metrics.observe_request(route, outcome, seconds)
        level = logging.DEBUG if scope["path"].startswith(_OPERATIONS) else logging.INFO
        if not _log.isEnabledFor(level):
            return
        fields = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 6)}
        _log.log(level, "request", extra={"fields": fields})


def _headers(identifier: str, told: Told) -> Iterator[tuple[bytes, bytes]]:
    yield _ID_HEADER, identifier.encode()
    if told.degraded:
        yield b"x-fathom-degraded", told.degraded.encode()
    if told.cached:
        yield b"x-fathom-cached", str(told.cached).encode()


def _refusal(reason: str) -> Response:
    response = problem(503, "Draining", f"{reason}; send the request to another server, or again in a moment")
    response.headers["connection"] = "close"
    return response


def _request_id(scope: Scope) -> str:
    return usable_id(next((value.decode("latin-1") for name, value in scope["headers"] if name == _ID_HEADER), ""))


def usable_id(sent: str) -> str:
    """The request id that a client sent, if it is fit for a log, or else a new one."""
    return sent if _USABLE_ID.fullmatch(sent) else os.urandom(16).hex()
