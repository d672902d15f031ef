"""Where a search may go: which chains lie one edit away from a chain. Knows no search, reward or model."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from typing import ClassVar, Protocol, TypeVar

from models.chain import Chain
from models.errors import ChainError

OPERATIONS = ("skip", "repeat")
# Blocks of 1 to 4 visits, 1 to 4 extra copies: arXiv 2507.07996, section 3.
MAX_BLOCK = 4
MAX_REPEATS = 4
# The paper bounds the length without giving the bound; this one is ours.
MAX_GROWTH = 2
# A skip in the formula `new length = length + block * times`, where a repeat has 1 to 4 times.
_SKIPPED = -1
_T = TypeVar("_T")


class Space(Protocol):
    """Chains around the full chain of `num_layers`, their lengths in visits within both bounds, ends included.

    influence: how much each layer changed the stream on this sample's full pass [num_layers]; skips of layers that
    changed little are then drawn first.
    """

    name: ClassVar[str]

    @property
    def num_layers(self) -> int: ...
    @property
    def min_length(self) -> int: ...
    @property
    def max_length(self) -> int: ...

    def edits(self, chain: Chain) -> list[Chain]:
        """The chains one edit away, each once, in a fixed order."""
        ...

    def draw(self, chain: Chain, rng: random.Random, influence: Sequence[float] = ()) -> Iterator[Chain]:
        """The same chains in random order, made one by one; those that several edits make may come several times."""
        ...

    def count_below(self, length: int) -> int:
        """How many chains are shorter; never too few."""
        ...


@dataclass(frozen=True, slots=True)
class CoLaSpace:
    """Skip a block or repeat it, again and again on what the last edit made: arXiv 2507.07996, section 3.

    `max_block` in 1..4: visits one edit covers. `max_repeats` in 1..4: extra copies one repeat makes. `deep_block`: the
    largest block in chains that are already edited, None for the same. `max_visits`: of one layer, None for any.
    `min_edit_layer`: visits before it are never edited. Raises ChainError if no chain can lie within the bounds.
    """

    name: ClassVar[str] = "cola"
    num_layers: int
    min_length: int
    max_length: int
    operations: tuple[str, ...] = OPERATIONS
    max_block: int = MAX_BLOCK
    max_repeats: int = MAX_REPEATS
    deep_block: int | None = None
    max_visits: int | None = None
    min_edit_layer: int = 0

    def __post_init__(self) -> None:
        _check_operations(self.operations)
        check_range("max_block", self.max_block, MAX_BLOCK)
        check_range("max_repeats", self.max_repeats, MAX_REPEATS)
        if self.deep_block is not None:
            check_range("deep_block", self.deep_block, MAX_BLOCK)
        if self.max_visits is not None and self.max_visits < 1:
            raise ChainError(f"max_visits is {self.max_visits}; use 1 or more, or none for no limit")
        check_lengths(self)

    @classmethod
    def of(
        cls,
        num_layers: int,
        *,
        operations: Iterable[str] = OPERATIONS,
        max_block: int = MAX_BLOCK,
        max_repeats: int = MAX_REPEATS,
        deep_block: int | None = None,
        max_visits: int | None = None,
        min_edit_layer: int = 0,
        min_length: int = 1,
        max_length: int | None = None,
    ) -> "CoLaSpace":
        """The space around the full chain of `num_layers`, at most twice as long unless told otherwise.

        Raises ChainError also if no edit of the full chain stays within the bounds: a search could not begin.
        """
        longest = MAX_GROWTH * num_layers if max_length is None else max_length
        blocks = (max_block, max_repeats, deep_block, max_visits, min_edit_layer)
        space = cls(num_layers, min_length, longest, tuple(operations), *blocks)
        check_not_empty(space, " or ".join(space.operations))
        return space

    def edits(self, chain: Chain) -> list[Chain]:
        """By visit, then skips before repeats, then by block and extra copies."""
        entries = [entry for variant in self._variants(chain).values() for entry in variant]
        edited = (
            _apply(chain, visit, block, times)
            for visit in range(self.min_edit_layer, len(chain))
            for block, times in entries
            if visit + block <= len(chain)
        )
        return list(dict.fromkeys(filter(self._allows, edited)))

    def draw(self, chain: Chain, rng: random.Random, influence: Sequence[float] = ()) -> Iterator[Chain]:
        """Each draw picks the operation, then block and copies, then the visit, each evenly.

        Four of five edits are repeats, and even odds over all edits would starve the skips.
        """
        pools = [
            even([self._blocks(chain, block, times, rng, influence) for block, times in variant], rng)
            for variant in self._variants(chain).values()
        ]
        return filter(self._allows, even(pools, rng))

    def count_below(self, length: int) -> int:
        first = self.min_edit_layer
        lengths = range(max(self.min_length, first), length)
        if "repeat" not in self.operations:
            return sum(comb(self.num_layers - first, one - first) for one in lengths)
        if "skip" not in self.operations:
            lengths = range(max(self.min_length, self.num_layers), length)
        return sum(self.num_layers ** (one - first) for one in lengths)

    def _blocks(
        self, chain: Chain, block: int, times: int, rng: random.Random, influence: Sequence[float]
    ) -> Iterator[Chain]:
        # A generator, so that a node pays only for the blocks it draws from: deep models have thousands of edits.
        visits = range(self.min_edit_layer, len(chain) - block + 1)
        order = rng.sample(visits, len(visits))
        if influence and times == _SKIPPED:
            order.sort(key=lambda visit: sum(influence[layer] for layer in chain.layers[visit : visit + block]))
        for visit in order:
            yield _apply(chain, visit, block, times)

    def _variants(self, chain: Chain) -> dict[str, list[tuple[int, int]]]:
        """By operation, the (block, times) whose result has a length within the bounds; no empty lists."""
        is_edited = chain.layers != tuple(range(self.num_layers))
        largest = self.deep_block if is_edited and self.deep_block is not None else self.max_block
        times = {"skip": (_SKIPPED,), "repeat": range(1, self.max_repeats + 1)}
        blocks = range(1, min(largest, len(chain) - self.min_edit_layer) + 1)
        allowed = {
            operation: [(b, t) for b in blocks for t in times[operation] if holds(self, len(chain) + b * t)]
            for operation in OPERATIONS
            if operation in self.operations
        }
        return {operation: variant for operation, variant in allowed.items() if variant}

    def _allows(self, chain: Chain) -> bool:
        return self.max_visits is None or max(Counter(chain.layers).values()) <= self.max_visits


def even(pools: Sequence[Iterator[_T]], rng: random.Random) -> Iterator[_T]:
    """All that the pools hold; every draw picks one of those that are not yet empty, evenly."""
    left = list(pools)
    while left:
        pool = rng.choice(left)
        try:
            yield next(pool)
        except StopIteration:
            left.remove(pool)


def holds(space: Space, length: int) -> bool:
    """Whether chains of this length are within the bounds."""
    return space.min_length <= length <= space.max_length


def check_lengths(space: Space) -> None:
    """Raise ChainError if no length lies within the bounds."""
    if space.num_layers < 1:
        raise ChainError(f"a model of {space.num_layers} layers has no chains to search; choose a layered model")
    if space.min_length < 1:
        raise ChainError(f"min_length is {space.min_length}; a chain has at least 1 visit, use 1 or more")
    if space.min_length > space.max_length:
        raise ChainError(
            f"min_length {space.min_length} is above max_length {space.max_length}; lower the one or raise the other"
        )


def check_not_empty(space: Space, edit: str) -> None:
    """Raise ChainError if no edit of the full chain stays within the bounds."""
    if not space.edits(Chain.full(space.num_layers)):
        raise ChainError(
            f"no {edit} of the {space.num_layers} visits of the full chain gives a length from "
            f"{space.min_length} to {space.max_length}; widen the lengths, the blocks or the operations"
        )


def check_range(name: str, value: int, limit: int) -> None:
    """Raise ChainError if `value` is not in 1..limit."""
    if not 1 <= value <= limit:
        raise ChainError(f"{name} is {value}; use 1 to {limit}")


def _apply(chain: Chain, visit: int, block: int, times: int) -> Chain:
    return chain.skip(visit, block) if times == _SKIPPED else chain.repeat(visit, block, times)


def _check_operations(operations: tuple[str, ...]) -> None:
    if not operations:
        raise ChainError(f"the space has no operations; name at least one of {', '.join(OPERATIONS)}")
    for operation in operations:
        if operation not in OPERATIONS:
            raise ChainError(f"operation {operation!r} is unknown; use {' or '.join(OPERATIONS)}")
