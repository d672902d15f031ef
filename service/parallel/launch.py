"""Who starts the ranks of an epoch and ends them: a nursery on this machine, or somebody on others."""

import contextlib
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from models.errors import BackendError
from service.parallel.address import Address
from service.parallel.wire import Wire

# For importing torch on a busy machine; for forking one rank or ending all.
_START_S, _ORDER_S = 120.0, 5.0
# What would have every rank use all cores, find a network, or tell at length that another one is gone.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "FATAL"}


class Launcher(Protocol):
    """Starts and ends ranks, always all of them, from one thread. patience_s: in which all come that were started."""

    @property
    def patience_s(self) -> float: ...

    def prepare(self) -> None:
        """Do what takes long and is needed once, if it is not done yet. Raises BackendError."""
        ...

    def start(self, size: int) -> None:
        """Have `size` ranks come to the leader's address. Raises BackendError."""
        ...

    def end(self) -> dict[int, str]:
        """Have no rank left; how those ended, by rank, that had ended by themselves."""
        ...

    def close(self) -> None:
        """End everything that was started."""
        ...


class Elsewhere:
    """Ranks that torchrun starts, on any machine: they come by themselves, and end when their connections do."""

    patience_s = math.inf

    def prepare(self) -> None:
        """Somebody else did."""

    def start(self, size: int) -> None:
        """They come when they come."""

    def end(self) -> dict[int, str]:
        return {}

    def close(self) -> None:
        """Nothing was started here."""


class Here:
    """Ranks on this machine, forked by a nursery that lives as long as the thread that first starts some."""

    patience_s = 60.0

    def __init__(self, control: Address, secret: bytes) -> None:
        self._control, self._secret = control, secret
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None

    def prepare(self) -> None:
        if self._wire is not None:
            return
        try:
            self._open()
        except OSError as error:
            self.close()
            raise BackendError(f"what starts ranks did not start: {error}; the log says why") from error

    def start(self, size: int) -> None:
        place = {"size": size, "control": str(self._control), "secret": self._secret.hex()}
        try:
            for rank in range(size):
                self._order({"fork": {"rank": rank, **place}})
        except OSError as error:
            self.close()
            raise BackendError(f"no rank could be started: {error}; the log says why") from error

    def end(self) -> dict[int, str]:
        if self._wire is None:
            return {}
        try:
            ended = self._order({"end": True})["ended"]
        except OSError:  # the kernel ends the ranks of a nursery that is gone, or stopped and then killed
            self.close()
            return {}
        return {int(rank): _manner(code) for rank, code in ended.items()}

    def close(self) -> None:
        if self._process is None or self._wire is None:
            return
        self._wire.cut()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ORDER_S)
        self._process.kill()
        self._process.wait()
        self._wire.close()
        self._process = self._wire = None

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        wire = self._wire
        if wire is None:
            raise ConnectionError("what starts ranks is gone")
        wire.send_json(order, timeout_s=_ORDER_S)
        answer: dict[str, Any] = wire.receive_json(_ORDER_S)
        return answer

    def _open(self) -> None:
        ours, theirs = socket.socketpair()
        command = (sys.executable, "-m", "service.parallel.nursery", str(theirs.fileno()), str(os.getpid()))
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {**_ENVIRONMENT, **os.environ, "PYTHONPATH": path}
        with theirs:
            # A session of its own: what a terminal sends is for the leader, which ends its ranks in order.
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=(theirs.fileno(),), start_new_session=True
            )
        self._wire = Wire(ours)
        self._wire.receive_json(_START_S)


def _manner(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
