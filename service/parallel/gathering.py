"""From connections that come in to ranks that have opened their parts: who belongs together, and how they begin."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

from models.errors import BackendError, FathomError
from service.parallel.greeting import Arrival
from service.parallel.messages import Facts, Welcome
from service.parallel.ranks import Ranks
from service.parallel.watch import Alarm
from service.parallel.wire import Wire

_log = logging.getLogger("fathom.ranks")
_TICK_S = 0.1
# By rank and role.
Arrivals: TypeAlias = Mapping[tuple[int, str], Arrival]


def gather(door: "queue.SimpleQueue[Arrival]", size: int, patience_s: float, is_over: Callable[[], bool]) -> Arrivals:
    """Both connections of each of `size` ranks. Of processes that say they are the same rank the last to come counts.

    Raises BackendError if they do not come in time, or it is over.
    """
    ends, found = time.monotonic() + patience_s, dict[tuple[int, str], Arrival]()
    try:
        while not _is_complete(found, size):
            if is_over() or time.monotonic() > ends:
                missing = sorted(set(range(size)) - {rank for rank, _ in found})
                raise BackendError(f"of {size} ranks {missing} did not come within {patience_s:g} s; the log says why")
            with contextlib.suppress(queue.Empty):
                _enter(door.get(timeout=_TICK_S), found, size)
        return found
    except BackendError:
        for arrival in found.values():
            arrival.wire.close()
        raise


def wires_of(arrivals: Arrivals) -> tuple[list[Wire], list[Wire]]:
    """Connections for programs and for pulses, in the order of ranks."""
    ranks = sorted({rank for rank, _ in arrivals})
    plans, pulses = ([arrivals[rank, role].wire for rank in ranks] for role in ("plan", "pulse"))
    return plans, pulses


def processes_of(arrivals: Arrivals) -> list[int]:
    """The number of each rank's process, on its machine."""
    names = [arrival.hello.process for (_, role), arrival in sorted(arrivals.items()) if role == "plan"]
    return [int(name.partition(".")[0]) for name in names]


def store_of(arrivals: Arrivals) -> str:
    """Where the first rank lets the others meet, as host and port; empty where a file will do."""
    first = arrivals[0, "plan"]
    return f"tcp://{_bracketed(first.host)}:{first.hello.store_port}" if first.hello.store_port else ""


class Opening:
    """Ranks that open their parts, awaited in a thread, which rings when it is over: others watch meanwhile."""

    def __init__(self, ranks: Ranks, welcome: Welcome, timeout_s: float, alarm: Alarm) -> None:
        self._ranks, self._welcome, self._timeout_s, self._alarm = ranks, welcome, timeout_s, alarm
        self._facts: Facts | None = None
        self._error: FathomError | None = None
        self._thread = threading.Thread(target=self._open, name="fathom-opening", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return self._facts is not None or self._error is not None

    def facts(self) -> Facts:
        """What was opened, once it is over. Raises FathomError."""
        self._thread.join()
        if self._facts is None:
            raise self._error or BackendError("the ranks were closed while they were opened")
        return self._facts

    def cause(self, seen: FathomError) -> FathomError:
        """What a rank said of its failure, if it did before it was gone, or else what was `seen` of it."""
        self._thread.join()
        return self._error if self._error and not isinstance(self._error.__cause__, OSError) else seen

    def _open(self) -> None:
        try:
            self._facts = self._ranks.open(self._welcome, self._timeout_s)
        except FathomError as error:
            self._error = error
        self._alarm.ring()


def _is_complete(found: Arrivals, size: int) -> bool:
    if len(found) < 2 * size:
        return False
    return all(found[rank, "plan"].hello.process == found[rank, "pulse"].hello.process for rank in range(size))


def _enter(arrival: Arrival, found: dict[tuple[int, str], Arrival], size: int) -> None:
    hello = arrival.hello
    if hello.size != size or not 0 <= hello.rank < size:
        arrival.wire.close()
        told = (
            "rank %d of %d came and the model has %d ranks; start as many as FATHOM_TENSOR_PARALLEL says, times "
            "FATHOM_PIPELINE_PARALLEL"
        )
        _log.error(told, hello.rank, hello.size, size)
        return
    if before := found.get((hello.rank, hello.role)):
        before.wire.close()
    found[hello.rank, hello.role] = arrival


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
