"""The spaces by name, and the smallest of them: a given list of chains."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from models.chain import Chain
from models.errors import ChainError
from service.cola.ordered import DrLLMSpace, PolarSpace
from service.cola.space import CoLaSpace, Space


@dataclass(frozen=True, slots=True)
class MenuSpace:
    """The chains of a list, and the full chain. Raises ChainError if the list has no other."""

    name: ClassVar[str] = "menu"
    num_layers: int
    chains: tuple[Chain, ...]

    def __post_init__(self) -> None:
        if not self.edits(Chain.full(self.num_layers)):
            raise ChainError("the menu has no chain but the full one; list at least one other in 'chains'")

    @classmethod
    def of(cls, num_layers: int, *, chains: Sequence[Chain] = ()) -> "MenuSpace":
        """The menu of these chains. Raises ChainError if one is empty or names a layer that is not there."""
        longest = max((len(chain) for chain in chains), default=0)
        return cls(num_layers, tuple(chain.check(num_layers, longest) for chain in chains))

    @property
    def min_length(self) -> int:
        return min(len(chain) for chain in self.chains)

    @property
    def max_length(self) -> int:
        return max(len(chain) for chain in self.chains)

    def edits(self, chain: Chain) -> list[Chain]:
        """Every listed chain, from the full one."""
        listed = dict.fromkeys(self.chains) if chain == Chain.full(self.num_layers) else {}
        return [one for one in listed if one != chain]

    def draw(self, chain: Chain, rng: random.Random, influence: Sequence[float] = ()) -> Iterator[Chain]:
        """In random order."""
        listed = self.edits(chain)
        return iter(rng.sample(listed, len(listed)))

    def count_below(self, length: int) -> int:
        every = {*self.chains, Chain.full(self.num_layers)}
        return sum(len(chain) < length for chain in every)


SPACES: Mapping[str, type[CoLaSpace | PolarSpace | DrLLMSpace | MenuSpace]] = {
    space.name: space for space in (CoLaSpace, PolarSpace, DrLLMSpace, MenuSpace)
}


def make_space(name: str, num_layers: int, knobs: Mapping[str, Any]) -> Space:
    """The space of that name around the full chain of `num_layers`.

    Raises ChainError for a name or a knob there is not, and for bounds within which no chain lies.
    """
    if name not in SPACES:
        raise ChainError(f"space {name!r} is unknown; use one of {', '.join(sorted(SPACES))}")
    kind = SPACES[name]
    if num_layers < 1:
        raise ChainError(f"a model of {num_layers} layers has no chains to search; choose a layered model")
    known = knobs_of(name)
    if unknown := sorted(knobs.keys() - known):
        raise ChainError(f"space {name!r} has no {unknown[0]}; it takes {', '.join(sorted(known))}")
    space: Space = kind.of(num_layers, **knobs)
    return space


def knobs_of(name: str) -> set[str]:
    """What can be set on the space of that name."""
    return {one.name for one in fields(SPACES[name])} - {"num_layers"}
