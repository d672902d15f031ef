"""The process: a socket, uvicorn, and signals that drain it. The app knows nothing of this."""

import asyncio
import errno
import gc
import logging
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from models.errors import FathomError
from service.api.rpc.optional import check_installed
from service.app import create_app
from service.backends.open import refuse_both_runtimes
from service.bound import Bound
from service.lifecycle import Lifecycle
from service.logs import configure_logs
from service.settings import Settings

_log = logging.getLogger("fathom.server")
_BACKLOG = 4096
# After the signal, how long connections that wait are still taken in, and turns of the loop to read what they sent.
_LAST_CALL_S = 5.0
_LAST_TURNS = 10
_TICK_S = 0.1


class AddressError(FathomError):
    """An address that cannot be listened on."""


class Server(uvicorn.Server):
    """Uvicorn that answers what it accepted and exits with 0 when told to stop.

    A second signal cuts it short: what still runs is answered 503, and as everyone got an answer the exit code is 0.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT; unlike uvicorn's, do not raise them again at the end: draining was the answer."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: cancel what still runs."""
        if self.should_exit:
            self.force_exit = True
        self._lifecycle.is_draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take in who came before the signal and hear them out; closing the socket would reset their connections."""
        ends = time.monotonic() + _LAST_CALL_S
        while select.select(sockets or [], [], [], 0)[0] and time.monotonic() < ends:
            await asyncio.sleep(0)
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(0)
        self._lifecycle.close_within(self.config.timeout_graceful_shutdown or 0)
        closing = asyncio.ensure_future(super().shutdown(sockets))
        while not (closing.done() or self.force_exit):
            await asyncio.wait((closing,), timeout=_TICK_S)
        if self.force_exit:
            self._lifecycle.close_within(0)
            for task in self.server_state.tasks:
                task.cancel()
        await closing
        if self.force_exit:  # uvicorn leaves it out, and a device thread must not run into the interpreter's end
            await self.lifespan.shutdown()


def serve(settings: Settings, bound: Mapping[str, Bound] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises AddressError or BackendError before anything is loaded."""
    listener = prepare(settings)
    configure_logs(with_access=settings.access_log)
    app = create_app(settings, bound)
    # What start-up made lives as long as the process; a collection that walks it would hold up every request.
    gc.collect()
    gc.freeze()
    _log.info("listening", extra={"fields": {"address": "{}:{}".format(*listener.getsockname()[:2])}})
    server_of(app, settings).run(sockets=[listener])


def prepare(settings: Settings) -> socket.socket:
    """What listens for a server that can start. Raises AddressError or BackendError."""
    refuse_both_runtimes()
    listener = listen(settings.host, settings.port)
    if settings.grpc_port is not None:
        check_installed()
        # For the message: gRPC binds it once the app starts.
        listen(settings.host, settings.grpc_port, "--grpc-port").close()
    return listener


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket. Raises AddressError naming the address and the `option` that is the remedy."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)  # bound but not listening, another process could take the address
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = (
            "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror or error})"
        )
        raise AddressError(f"{host}:{port} {reason}; choose another with {option} or --host") from error
    return listener


def server_of(app: FastAPI, settings: Settings) -> Server:
    """What serves an app on the sockets it is given."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",  # no route is a WebSocket; the library costs time and memory at start
        backlog=_BACKLOG,
        timeout_graceful_shutdown=round(settings.drain_s),
    )
    return Server(config, app.state.lifecycle)
