"""When load is shed in depth: which step of a declared ladder of cheaper chains requests get. Knows no queue.

Pressure is 1 where the queue is as full, or its wait as long, as it may get before something has to give.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.chain import Chain
from models.errors import ChainError

# One step down the ladder takes effect before the next is taken; one step back only after calm.
_STEP_S, _CALM_S = 0.25, 1.0
# Below this pressure it is calm; between it and 1 everything stays as it is.
_CALM = 0.5


@dataclass(frozen=True, slots=True)
class Ladder:
    """Chains in place of the full one, each shorter than the one before, and the pressure from which they are used.

    max_wait_s: until what waits has left; max_fraction: of the queue's limits.
    """

    chains: tuple[Chain, ...]
    max_wait_s: float
    max_fraction: float

    def pressure(self, wait_s: float, fraction: float) -> float:
        """How close a queue is to what it may come to, or how far beyond."""
        return max(wait_s / self.max_wait_s, fraction / self.max_fraction)


def read_ladder(chains: Sequence[str], num_layers: int, max_length: int) -> tuple[Chain, ...]:
    """The steps of a ladder for a model; the full chain may stand before them. Raises ChainError for what is none."""
    full = Chain.full(num_layers)
    steps = [Chain.parse(text).check(num_layers, max_length) for text in chains]
    steps = steps[1:] if steps[:1] == [full] else steps
    for above, below in zip([full, *steps], steps, strict=False):
        if len(below) >= len(above):
            raise ChainError(
                f"in the ladder {list(chains)} chain {below.format()!r} has {len(below)} visits and follows one of "
                f"{len(above)}; each must be shorter than the one before, the first than the full chain"
            )
    return tuple(steps)


class Degrade:
    """The step that holds now: 0 is the full chain. One step at a time in both directions, up at once, down slowly."""

    def __init__(self, num_steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._num_steps, self._clock = num_steps, clock
        self._step = 0
        self._stepped_at = -_STEP_S
        self._seen_at = clock()
        self._calm_since: float | None = None

    def step(self, pressure: float) -> int:
        """The step at this pressure. Time in which nobody asked counts as calm if it ends in calm."""
        now = self._clock()
        if pressure >= 1:
            self._calm_since = None
            if self._step < self._num_steps and now - self._stepped_at >= _STEP_S:
                self._step += 1
                self._stepped_at = now
        elif pressure > _CALM:
            self._calm_since = None
        else:
            self._climb_back(now)
        self._seen_at = now
        return self._step

    def _climb_back(self, now: float) -> None:
        since = self._seen_at if self._calm_since is None else self._calm_since
        while self._step and now - since >= _CALM_S:
            self._step -= 1
            since += _CALM_S
        self._calm_since = since
