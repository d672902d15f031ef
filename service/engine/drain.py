"""How fast a queue empties, and when there will be room. Standard library only; knows no work."""

from collections.abc import Callable, Sequence

# Busy seconds after which what was measured counts half.
_MEMORY_S = 2.0
# What is said while nothing is known, and at most.
_UNKNOWN_S, _MOST_S = 1.0, 600.0


class DrainRate:
    """Units that leave per second while something waits, smoothed. One unit is a sample, a row or a token."""

    def __init__(self, num_units: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = [0.0] * num_units
        self._busy_s = 0.0
        self._since = clock()

    def begin(self) -> None:
        """Something waits again after nothing did; the time between says nothing."""
        self._since = self._clock()

    def leave(self, counts: Sequence[int]) -> None:
        """So many of each unit have left to be served."""
        now = self._clock()
        self._busy_s += now - self._since
        self._since = now
        for unit, count in enumerate(counts):
            self._left[unit] += count
        if self._busy_s > _MEMORY_S:
            self._busy_s /= 2
            self._left = [left / 2 for left in self._left]

    def seconds_for(self, unit: int, count: float) -> float:
        """How long it takes until `count` of one unit have left; at least as long as nothing has left by now."""
        busy_s = self._busy_s + self._clock() - self._since
        left = self._left[unit]
        return min(count * busy_s / left, _MOST_S) if left else _UNKNOWN_S
