"""Where ranks come in: listens, lets in who knows the secret, and turns everything else away."""

import contextlib
import logging
import queue
import socket
import threading

from service.parallel.address import Address
from service.parallel.greeting import Arrival, greet

_log = logging.getLogger("fathom.ranks")
# How long a greeting may take, and how many are under way at once; one more is turned away.
_GREETING_S = 5.0
_MAX_GREETINGS = 32


class Door:
    """A listening socket and what came in through it. Close it."""

    def __init__(self, address: Address, secret: bytes) -> None:
        self._secret, self._listener = secret, address.listen()
        self.port: int = 0 if address.path else self._listener.getsockname()[1]
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._places = threading.Semaphore(_MAX_GREETINGS)
        self._thread = threading.Thread(target=self._listen, name="fathom-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._listener.close()
        while not self.arrivals.empty():
            self.arrivals.get().wire.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._greet, args=(connection,), name="fathom-greeting", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            self.arrivals.put(greet(connection, self._secret, _GREETING_S))
        except OSError as error:
            _log.warning("a connection to the ranks' address was refused: %s", error)
        finally:
            self._places.release()
