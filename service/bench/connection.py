"""A keep-alive HTTP connection that costs little: bytes of a request out, status and body of the answer in.

Not httpx, which takes 0.5 ms of CPU for a request where the server takes 0.2: it would measure itself, and on a small
machine take the server's time. Knows no model; TLS, redirects and proxies are not for measuring.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from models.errors import FathomError


class ConnectionLostError(FathomError):
    """The server closed the connection, or what came is not HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes


# Hears the bytes of a body as they come, and when.
OnData = Callable[[bytes, float], None]


class Connection(asyncio.Protocol):
    """One request at a time. After ConnectionLostError it is of no more use."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._on_data: OnData | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self.is_open = False

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Connect. Raises ConnectionLostError naming the address."""
        try:
            _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        except OSError as error:
            raise ConnectionLostError(
                f"{host}:{port} does not answer: {error.strerror or error}; start a server"
            ) from error
        return connection

    async def ask(self, request: bytes, on_data: OnData | None = None) -> Reply:
        """Send a whole request and read its answer. Raises ConnectionLostError."""
        if self._transport is None or not self.is_open:
            raise ConnectionLostError("the server closed the connection")
        assert self._waiting is None, "the connection is in use"
        self._waiting, self._on_data = asyncio.get_running_loop().create_future(), on_data
        self._transport.write(request)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiting = None

    def close(self) -> None:
        """Close it; a server sees that its client left."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is none by class

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._fail(f"the server closed the connection{f': {exc}' if exc else ''}")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._fail(f"what came is not HTTP: {error}")

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        if self._on_data is not None:
            self._on_data(data, time.perf_counter())

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Reply(self._parser.get_status_code(), self._headers, b"".join(self._body)))

    def _fail(self, reason: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionLostError(reason))


def written(method: str, path: str, body: bytes = b"", host: str = "fathom", **headers: str) -> bytes:
    """The bytes of a request; underscores in the names of headers stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
