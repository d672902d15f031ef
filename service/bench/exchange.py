"""One request and its answer: what was sent, when it should have been, and when its parts came back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from service.bench.connection import Connection, ConnectionLostError

NO_ANSWER = 0
_TOKEN = b"event: token\n"
_PROBLEM = b"event: problem\n"
_BAD_STREAM = 599  # an error after the first byte, when the status has been said


@dataclass(frozen=True, slots=True)
class Call:
    """A request ready to be sent; `num_rows` inputs along `chain`."""

    content: bytes
    chain: str = "full"
    num_rows: int = 1
    is_stream: bool = False
    has_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """Times in seconds of one clock; `due_s` is when the request should have been sent."""

    call: Call
    due_s: float
    sent_s: float
    done_s: float
    status: int
    num_tokens: int = 0
    token_times_s: Sequence[float] = ()

    @property
    def is_answered(self) -> bool:
        return self.status == 200

    @property
    def latency_s(self) -> float:
        """From when it should have been sent: a request that waited for its turn to be sent has waited."""
        return self.done_s - self.due_s

    @property
    def first_token_s(self) -> float | None:
        return self.token_times_s[0] - self.due_s if self.token_times_s else None


@dataclass(slots=True)
class Wire:
    """A place to send from: connects when there is no connection, and after the server closed it."""

    host: str
    port: int
    _connection: Connection | None = field(default=None, init=False)

    async def send(self, call: Call, due_s: float | None = None) -> Exchange:
        """Send now what was due at `due_s`, now if None. No answer is status 0, not an error."""
        sent_s, times = time.perf_counter(), _TokenTimes()
        due_s = sent_s if due_s is None else due_s
        try:
            if self._connection is None or not self._connection.is_open:
                self._connection = await Connection.open(self.host, self.port)
            reply = await self._connection.ask(call.content, times.hear if call.is_stream else None)
        except ConnectionLostError:
            return Exchange(call, due_s, sent_s, time.perf_counter(), NO_ANSWER)
        done_s, status = time.perf_counter(), reply.status
        if call.is_stream and _PROBLEM in reply.body:
            status = _BAD_STREAM
        tokens = _num_tokens(call, reply.body) if status == 200 else 0
        return Exchange(call, due_s, sent_s, done_s, status, tokens, times.found)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()


class _TokenTimes:
    """When each token of a stream came. An event lies within one chunk, or ends the one before it."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._rest = b""

    def hear(self, data: bytes, now_s: float) -> None:
        data = self._rest + data
        self.found += [now_s] * data.count(_TOKEN)
        self._rest = data[-(len(_TOKEN) - 1) :]


def _num_tokens(call: Call, body: bytes) -> int:
    if call.is_stream:
        return body.count(_TOKEN)
    return int(orjson.loads(body)["usage"]["completion_tokens"]) if call.has_tokens else 0
