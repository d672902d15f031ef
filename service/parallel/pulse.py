"""Signs of life of one rank, from a thread beside its work; and its end when nobody leads it any more."""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import NoReturn

from service.parallel.wire import Wire

# How often both sides say that they live.
BEAT_S = 0.25
# How a rank ends when those around it are gone: not well, so that whoever started it starts all of them again.
LOST = 75
_PR_SET_PDEATHSIG = 1


class Pulse:
    """Beats until the connection ends or is silent for `silence_s`; then the process ends, whatever it is doing."""

    def __init__(self, wire: Wire, silence_s: float) -> None:
        self._wire, self._silence_s = wire, silence_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fathom-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more: the rank ends in order."""
        self._is_over.set()
        self._thread.join()

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._is_over.is_set():
            try:
                self._wire.send(b"", timeout_s=self._silence_s)
                self._wire.receive(BEAT_S)
                heard = time.monotonic()
                self._is_over.wait(BEAT_S)
            except TimeoutError:
                if time.monotonic() - heard > self._silence_s:
                    self._end("nothing was heard of the leader")
            except OSError as error:
                self._end(f"the leader is gone: {error}")

    def _end(self, reason: str) -> None:
        if not self._is_over.is_set():
            leave(reason)


def leave(reason: str) -> NoReturn:
    """End this process at once: its main thread may wait in a collective for ever."""
    print(f"rank ends: {reason}", file=sys.stderr, flush=True)
    os._exit(LOST)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(LOST)
