"""Frames over a stream socket: a length, then so many bytes; and JSON in them. Knows nothing of what they say."""

import socket
import time
from typing import Any

import orjson

_LENGTH_BYTES = 4
# Above any program or output; what claims more is no frame.
MAX_FRAME_BYTES = 1 << 30
# Arrays in a frame begin at multiples of it.
ALIGNMENT = 8


class Wire:
    """One end of a connection. One thread at a time sends, one receives; `cut` is for any."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.settimeout(None)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, *parts: bytes | bytearray, timeout_s: float | None = None) -> None:
        """One frame of several parts. Raises OSError, TimeoutError among them."""
        self._socket.settimeout(timeout_s)
        length = sum(map(len, parts))
        self._socket.sendall(b"".join((length.to_bytes(_LENGTH_BYTES, "little"), *parts)))

    def receive(self, timeout_s: float | None = None, max_bytes: int = MAX_FRAME_BYTES) -> bytearray:
        """The next frame. Raises OSError: ConnectionError at the end, TimeoutError when the time is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        length = int.from_bytes(self._exactly(_LENGTH_BYTES, deadline), "little")
        if length > max_bytes:
            raise ConnectionError(f"a frame of {length} bytes was announced; at most {max_bytes} are taken")
        return self._exactly(length, deadline)

    def send_json(self, message: Any, timeout_s: float | None = None) -> None:
        """One frame with a JSON document."""
        self.send(orjson.dumps(message), timeout_s=timeout_s)

    def receive_json(self, timeout_s: float | None = None, max_bytes: int = MAX_FRAME_BYTES) -> Any:
        """The next frame as a JSON document. Raises ConnectionError if it is none."""
        try:
            return orjson.loads(self.receive(timeout_s, max_bytes))
        except orjson.JSONDecodeError as error:
            raise ConnectionError(f"a frame is no JSON: {error}") from error

    def cut(self) -> None:
        """End the connection; whoever waits on it wakes up with an error, at both ends."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Cut, and give the descriptor back. Only once no thread uses it."""
        self.cut()
        self._socket.close()

    def close_copy(self) -> None:
        """Give the descriptor back in a process that was forked; the connection stays as it is in the other."""
        self._socket.close()

    def _exactly(self, length: int, deadline: float | None) -> bytearray:
        received, num_received = bytearray(length), 0
        view = memoryview(received)
        while num_received < length:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError("the time for a frame is over")
            self._socket.settimeout(left_s)
            count = self._socket.recv_into(view[num_received:])
            if not count:
                raise ConnectionError("the other end closed the connection")
            num_received += count
        return received
