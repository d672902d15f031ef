"""Watches the ranks of one epoch: beats answered, ends seen, a probe where nobody asks. Ends with one that is lost."""

import selectors
import socket
import time
from collections.abc import Callable

from service.parallel.pulse import BEAT_S
from service.parallel.ranks import LostError, Ranks

# For a beat to leave or arrive, once it is there.
_BEAT_TIMEOUT_S = 1.0
# A group that nobody asked for so long is asked to meet.
PROBE_S = 2.0


class Alarm:
    """Lets any thread wake the one that watches."""

    def __init__(self) -> None:
        self._there, self._here = socket.socketpair()
        self._there.setblocking(False)

    def fileno(self) -> int:
        """For selectors."""
        return self._here.fileno()

    def ring(self) -> None:
        """Wake it; a second time before it woke does nothing."""
        try:
            self._there.send(b"!")
        except OSError:
            return

    def clear(self) -> None:
        """It is awake."""
        self._here.recv(1 << 10)

    def close(self) -> None:
        self._there.close()
        self._here.close()


class Watch:
    """The pulses of ranks, lost when one is silent for `silence_s`; `probe` has them meet."""

    def __init__(self, ranks: Ranks, alarm: Alarm, silence_s: float, probe: Callable[[], None]) -> None:
        self._ranks, self._alarm, self._silence_s, self._probe = ranks, alarm, silence_s, probe
        self._heard_at = [time.monotonic()] * len(ranks.pulses)
        self._beat_at = 0.0

    @property
    def ages_s(self) -> list[float]:
        """Seconds since each rank was heard."""
        now = time.monotonic()
        return [now - heard_at for heard_at in self._heard_at]

    def until_alarm(self) -> None:
        """Watch until the alarm rings. Raises LostError."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._alarm, selectors.EVENT_READ)
            for rank, pulse in enumerate(self._ranks.pulses):
                selector.register(pulse, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select(BEAT_S):
                    if key.data is None:
                        self._alarm.clear()
                        return
                    self._hear(key.data)
                self._check()
                self._beat()
                if time.monotonic() - self._ranks.used_at > PROBE_S:
                    self._probe()

    def _hear(self, rank: int) -> None:
        try:
            self._ranks.pulses[rank].receive(_BEAT_TIMEOUT_S)
        except OSError as error:
            raise LostError(f"rank {rank} is gone: {error}") from error
        self._heard_at[rank] = time.monotonic()

    def _check(self) -> None:
        """After everything that came was read: a leader that was held up itself blames nobody for it."""
        for rank, age_s in enumerate(self.ages_s):
            if age_s > self._silence_s:
                raise LostError(f"rank {rank} was silent for {age_s:.1f} s")

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at < BEAT_S:
            return
        self._beat_at = now
        for rank, pulse in enumerate(self._ranks.pulses):
            try:
                pulse.send(b"", timeout_s=_BEAT_TIMEOUT_S)
            except OSError as error:
                raise LostError(f"rank {rank} is gone: {error}") from error
