"""Which waiting sequence joins the running batch next. Standard library only; knows no queue and no page.

A layer call costs nearly the same for one row as for many, so that the sequence whose chain adds the fewest calls to a
step joins first. Whoever waits is overtaken only so often.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Protocol, TypeVar

from models.chain import Chain

# How far down the line admission looks, and how often it may let others by.
WINDOW = MAX_OVERTAKEN = 8


class Waiting(Protocol):
    """What admission knows of a sequence; it counts in `num_overtaken` how many joined before it out of turn."""

    @property
    def chain(self) -> Chain: ...

    num_overtaken: int


_W = TypeVar("_W", bound=Waiting)


class Admission:
    """Looks at the first `window` of those who wait; nobody is overtaken more than `max_overtaken` times."""

    def __init__(self, window: int = WINDOW, max_overtaken: int = MAX_OVERTAKEN) -> None:
        self._window, self._max_overtaken = window, max_overtaken

    def choose(self, waiting: Iterable[_W], calls: Sequence[int]) -> _W | None:
        """Whose chain adds the fewest layer calls to `calls`, those of one step now; the first of equals."""
        candidates = self._candidates(waiting)
        return min(candidates, key=lambda one: growth(one.chain, tuple(calls)), default=None)

    def admitted(self, chosen: Waiting, waiting: Iterable[Waiting]) -> None:
        """Count for everyone before `chosen` in the line, which it still stands in, that it was overtaken."""
        for one in islice(waiting, self._window):
            if one is chosen:
                return
            one.num_overtaken += 1

    def _candidates(self, waiting: Iterable[_W]) -> list[_W]:
        candidates = []
        for one in islice(waiting, self._window):
            candidates.append(one)
            if one.num_overtaken >= self._max_overtaken:
                break
        return candidates


@lru_cache(maxsize=4096)
def growth(chain: Chain, calls: tuple[int, ...]) -> int:
    """Layer calls to add to `calls` until `chain` can be followed among them: what is no common subsequence."""
    return len(chain) - _common(chain.layers, calls)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common subsequence, by rows of bits (Hyyrö, 2004)."""
    places: dict[int, int] = {}
    for place, layer in enumerate(first):
        places[layer] = places.get(layer, 0) | 1 << place
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for layer in second:
        matches = row & places.get(layer, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(first) - row.bit_count()
