"""How two ends of a new connection prove to each other that they know the same secret, and say who they are.

HMAC over nonces of both sides, so that nothing overheard can be used again. What is said afterwards is not encrypted,
like what the ranks say among each other: between machines both belong on a network of their own.
"""

import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from service.parallel.digest import equal, mac
from service.parallel.wire import Wire

# Version of everything that is said on these connections.
PROTOCOL = b"fathom-ranks-2"
_NONCE_BYTES = 32
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Hello:
    """Who connects: which rank of how many, by a name that its process alone has, which begins with its number.

    A rank has two connections: `plan` for programs, `pulse` for signs of life. store_port: where a first rank that has
    no files in common with the others lets them meet; 0 elsewhere.
    """

    rank: int
    size: int
    process: str
    role: Literal["plan", "pulse"]
    store_port: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection whose other end has proved itself; the host it came from, if it came over a network."""

    hello: Hello
    wire: Wire
    host: str = ""


def greet(connection: socket.socket, secret: bytes, timeout_s: float) -> Arrival:
    """Let in whoever knows the secret. Raises OSError; then the connection is closed."""
    wire, ends = Wire(connection), time.monotonic() + timeout_s
    try:
        host = "" if connection.family == socket.AF_UNIX else str(connection.getpeername()[0])
        mine = os.urandom(_NONCE_BYTES)
        wire.send(PROTOCOL, mine, timeout_s=timeout_s)
        answer = wire.receive(ends - time.monotonic(), _MAX_BYTES)
        theirs, proof, told = answer[:32], answer[32:64], answer[64:]
        if not equal(proof, mac(secret, b"rank", mine, theirs, told)):
            raise ConnectionError("whoever connected does not know the secret")
        wire.send(mac(secret, b"leader", theirs, mine), timeout_s=timeout_s)
        return Arrival(_hello(bytes(told)), wire, host)
    except BaseException:
        wire.close()
        raise


def introduce(connection: socket.socket, secret: bytes, hello: Hello, timeout_s: float) -> Wire:
    """Say who connects, and see that the other end knows the secret too. Raises OSError; then it is closed."""
    wire = Wire(connection)
    try:
        opening = wire.receive(timeout_s, _MAX_BYTES)
        if not opening.startswith(PROTOCOL):
            raise ConnectionError("what answers does not lead ranks, or is of another version")
        theirs, mine, told = opening[len(PROTOCOL) :], os.urandom(_NONCE_BYTES), orjson.dumps(asdict(hello))
        wire.send(mine, mac(secret, b"rank", theirs, mine, told), told, timeout_s=timeout_s)
        if not equal(wire.receive(timeout_s, _MAX_BYTES), mac(secret, b"leader", mine, theirs)):
            raise ConnectionError("what answers does not know the secret")
        return wire
    except BaseException:
        wire.close()
        raise


def _hello(told: bytes) -> Hello:
    try:
        said: dict[str, Any] = orjson.loads(told)
        return Hello(**said)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise ConnectionError(f"whoever connected does not say which rank it is: {error}") from error
