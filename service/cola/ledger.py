"""What a search found: rewards by chain, and the exact front over reward and length. Knows no tree."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.chain import Chain
from models.errors import InputError


@dataclass(frozen=True, slots=True)
class Found:
    """A chain and the reward it got."""

    chain: Chain
    reward: float

    @property
    def length(self) -> int:
        """In visits."""
        return len(self.chain)


def pareto_front(found: Iterable[Found]) -> list[Found]:
    """What nothing else beats in reward and length at once: highest reward first, then ever shorter.

    Of chains equal in both, the first given stays.
    """
    front: list[Found] = []
    for candidate in sorted(found, key=_rank):
        if not front or candidate.length < front[-1].length:
            front.append(candidate)
    return front


class Ledger:
    """Observed chains in the order they came."""

    def __init__(self) -> None:
        self._found: dict[Chain, Found] = {}
        self._front: list[Found] = []

    def write(self, chain: Chain, reward: float) -> None:
        """Note the reward of a chain. Raises InputError if it is not finite."""
        if not math.isfinite(reward):
            raise InputError(f"the reward of chain '{chain}' is {reward}; rewards are finite numbers")
        self._found[chain] = Found(chain, reward)
        self._front = pareto_front([*self._front, self._found[chain]])

    def revise(self, rewards: Mapping[Chain, float]) -> None:
        """Replace the rewards of chains that are still known."""
        self._found.update({chain: Found(chain, rewards[chain]) for chain in self._found.keys() & rewards.keys()})
        self._front = pareto_front(self._found.values())

    def strike(self, chain: Chain) -> None:
        """Forget a chain whose reward did not hold."""
        del self._found[chain]
        self._front = pareto_front(self._found.values())

    def front(self) -> list[Found]:
        """The exact front, highest reward first."""
        return list(self._front)

    def top(self, count: int) -> list[Found]:
        """The `count` best: highest reward, then shortest, then first observed."""
        return sorted(self._found.values(), key=_rank)[:count]

    def count_below(self, length: int) -> int:
        """How many known chains are shorter."""
        return sum(found.length < length for found in self._found.values())


def _rank(found: Found) -> tuple[float, int]:
    return -found.reward, found.length
