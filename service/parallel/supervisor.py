"""A model's ranks over their lives: started together, watched, ended together, started again under a new epoch.

Lives in a thread of its own. Knows no backend, no queue and no request.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from models.errors import BackendError, FathomError, GroupLostError
from service.backends.protocol import Array
from service.parallel.building import Builder
from service.parallel.messages import Facts
from service.parallel.program import Op, Program
from service.parallel.ranks import LostError, Ranks
from service.parallel.watch import Alarm, Watch

_log = logging.getLogger("fathom.ranks")
# Builds in a row that may fail; the pause before the second, doubled each time; and when to ask a broken model again.
_MAX_FAILURES, _FIRST_PAUSE_S, _BROKEN_S = 5, 0.5, 60.0
# For a program that only has the ranks meet; for ends in order.
_PROBE_S, _END_S = 10.0, 5.0
_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Group:
    """Which model so many ranks share; how long one program may take them, and one of them show no sign of life."""

    model: str
    size: int
    step_deadline_s: float
    silence_s: float


class Observer(Protocol):
    """Hears of every program and every loss; called from several threads."""

    def observe_step(self, seconds: float, waited_s: Sequence[float]) -> None: ...
    def observe_loss(self) -> None: ...


# Gives a program to what it is called with, or none if this is not the moment.
Probe = Callable[[Callable[[bytes], object]], None]


def _meet(run: Callable[[bytes], object]) -> None:
    program = Program()
    program.add(Op.PROBE)
    run(program.encode())


class Supervisor:
    """Ranks that come back. Every method may be called from any thread."""

    def __init__(self, group: Group, builder: Builder) -> None:
        self.group, self._builder = group, builder
        self._alarm, self._changed = Alarm(), threading.Condition()
        self._ranks: Ranks | None = None
        self._watch: Watch | None = None
        self._facts: Facts | None = None
        self._reason, self._broken = "", ""
        self._error: FathomError = BackendError("its ranks were closed while they were started")
        self._is_closing = False
        self._build_s, self._lost_at = 1.0, time.monotonic()
        self.epoch = 0
        self.observer: Observer | None = None
        # Has ranks meet that nobody asks anything; whoever sends them programs may have something else to tell them.
        self.probe: Probe = _meet
        self._thread = threading.Thread(target=self._live, name="fathom-ranks", daemon=True)

    def open(self, given_up: threading.Event) -> Facts:
        """Start the ranks; what they opened. Raises FathomError, with what they say, if they do not come up."""
        self._thread.start()
        with self._changed:
            while not (self._facts or self._broken or given_up.is_set()):
                self._changed.wait(_TICK_S)
            if self._facts is not None:
                return self._facts
        self.close()
        raise self._error

    @property
    def is_up(self) -> bool:
        return self._ranks is not None

    @property
    def is_broken(self) -> bool:
        """Whether nobody tries any more to bring the ranks back."""
        return bool(self._broken)

    @property
    def build_s(self) -> float:
        """Seconds that the last start of all ranks took."""
        return self._build_s

    @property
    def ages_s(self) -> list[float]:
        """Seconds since each rank was heard; none while there are none."""
        watch = self._watch
        return watch.ages_s if watch else []

    @property
    def all_reduce_s(self) -> float:
        """Seconds of the last probe, of the slowest rank."""
        return max(self._ranks.told.probe_s, default=0.0) if self._ranks else 0.0

    @property
    def num_carries(self) -> int:
        """Carries that each rank holds."""
        return self._ranks.told.num_carries if self._ranks else 0

    @property
    def ranks(self) -> Ranks | None:
        """Those of this epoch, while they are up."""
        return self._ranks

    def lost(self) -> GroupLostError:
        """The error of whoever asks while the ranks are not up, or asks for what an earlier epoch held."""
        name = f"model {self.group.model!r}"
        if self._broken:
            return GroupLostError(
                f"{name} is broken: its {self.group.size} ranks failed {_MAX_FAILURES} times in a row, at last "
                f"because {self._broken}; see the log, then unload and load it",
                _BROKEN_S,
                is_final=True,
            )
        left_s = max(self._build_s - (time.monotonic() - self._lost_at), 1.0)
        return GroupLostError(
            f"{name} lost its ranks ({self._reason}), which are being started anew; come back in {left_s:.0f} s", left_s
        )

    def run(self, epoch: int, body: bytes) -> dict[str, Array]:
        """The outputs of a program. Raises GroupLostError if the epoch is over, or what the program raised."""
        ranks = self._ranks
        if ranks is None or ranks.epoch != epoch:
            raise self.lost()
        try:
            outputs = ranks.run(body, self.group.step_deadline_s)
        except LostError as error:
            self._lose(ranks, str(error))
            raise self.lost() from error
        if self.observer:
            self.observer.observe_step(ranks.told.step_s, ranks.told.waited_s)
        return outputs

    def close(self) -> None:
        """End all ranks in order, then whatever is left of them. Blocks until done."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._alarm.ring()
        if self._thread.ident is not None:
            self._thread.join()
            self._alarm.close()

    def _live(self) -> None:
        failures, goes_on = 0, True
        try:
            while goes_on:
                ranks = self._build()
                if ranks is not None:
                    self._look_after(ranks)
                failures = 0 if ranks and ranks.num_answered else failures + 1
                goes_on = self._goes_on(failures)
        finally:
            self._builder.close()
            with self._changed:
                self._changed.notify_all()

    def _goes_on(self, failures: int) -> bool:
        """Whether to build anew, after the pause that so many failures in a row ask for."""
        with self._changed:
            if self._is_closing:
                return False
            if self._facts is None or failures >= _MAX_FAILURES:
                self._broken = self._reason
                _log.error("model %s is broken: %s", self.group.model, self._reason)
                return False
            pause_s = _FIRST_PAUSE_S * 2 ** (failures - 1) if failures else 0.0
            return not self._changed.wait_for(lambda: self._is_closing, pause_s)

    def _build(self) -> Ranks | None:
        """All ranks of a new epoch, or None if they did not come up."""
        self.epoch += 1
        try:
            self._builder.prepare()
            started = time.monotonic()
            ranks, facts = self._builder.build(self.epoch, self._alarm, lambda: self._is_closing)
        except FathomError as error:
            self._reason, self._error = str(error), error
            ended = self._builder.end()
            if not self._is_closing:
                _log.error("model %s: its ranks did not start: %s%s", self.group.model, error, ended)
            return None
        with self._changed:
            self._build_s = time.monotonic() - started
            self._watch = Watch(ranks, self._alarm, self.group.silence_s, partial(self._have_met, ranks))
            self._ranks, self._facts = ranks, facts
            self._changed.notify_all()
        _log.info("model %s: ranks of epoch %d are up: processes %s", self.group.model, self.epoch, ranks.processes)
        return ranks

    def _look_after(self, ranks: Ranks) -> None:
        """Watch until the ranks are lost or to be closed; then end them, and with them all they held."""
        assert self._watch is not None
        try:
            while self._ranks is ranks and not self._is_closing:
                self._watch.until_alarm()
        except LostError as error:
            self._lose(ranks, str(error))
        if self._ranks is ranks:
            self._ranks = self._watch = None
            ranks.end(_END_S)
        else:
            _log.error("model %s lost its ranks: %s%s", self.group.model, self._reason, self._builder.end())
        ranks.close()

    def _have_met(self, ranks: Ranks) -> None:
        """Have the ranks meet. Raises LostError."""
        try:
            self.probe(lambda body: ranks.run(body, _PROBE_S))
        except FathomError as error:
            raise LostError(f"a probe failed: {error}") from error

    def _lose(self, ranks: Ranks, reason: str) -> None:
        """Whoever notices it first says why."""
        with self._changed:
            if self._ranks is not ranks:
                return
            self._ranks = self._watch = None
            self._reason, self._lost_at = reason, time.monotonic()
        if self.observer:
            self.observer.observe_loss()
        ranks.cut()
        self._alarm.ring()
