"""Where ranks find the process that leads them: a path on one machine, or a host and port between several."""

import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from models.errors import BackendError

_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket's path, or a host with a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def listen(self) -> socket.socket:
        """A listening socket. Raises BackendError."""
        try:
            if self.path:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(self.path)
                listener.listen(_BACKLOG)
                return listener
            family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise BackendError(
                f"ranks cannot be awaited at {self} ({error.strerror or error}); "
                "choose another FATHOM_RANKS_ADDRESS, one for each model"
            ) from error

    def connect(self, timeout_s: float) -> socket.socket:
        """A connection. Raises OSError."""
        if not self.path:
            return socket.create_connection((self.host, self.port), timeout_s)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout_s)
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp://{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in `unix:/path` or `tcp://host:port`. Raises BackendError."""
    if text.startswith("unix:"):
        return Address(path=text.removeprefix("unix:"))
    try:
        parts = urlsplit(text)
        if parts.scheme == "tcp" and parts.hostname and parts.port is not None and not parts.path:
            return Address(host=parts.hostname, port=parts.port)
    except ValueError:
        pass
    raise BackendError(f"{text!r} is no address of ranks; write tcp://host:port")
