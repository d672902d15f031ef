"""Spaces that keep the order of the layers: each is skipped, kept, or part of one block that is passed twice."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeAlias

from models.chain import Chain
from service.cola.space import MAX_BLOCK, MAX_GROWTH, check_lengths, check_not_empty, check_range, even, holds

# First visit of a block in a chain, and its visits.
_Block: TypeAlias = tuple[int, int]


class _Ordered:
    """Edits of chains in layer order, from the skips and the repeats of a chain that a space allows."""

    __slots__ = ()

    def edits(self, chain: Chain) -> list[Chain]:
        """By visit, then skips before repeats, then by block."""
        skips, repeats = self._skips(chain), self._repeats(chain)
        return [edited for _, edited in sorted(skips + repeats, key=lambda one: one[0][0])]

    def draw(self, chain: Chain, rng: random.Random, influence: Sequence[float] = ()) -> Iterator[Chain]:
        """Skips and repeats in even parts, those first that leave out the least influence."""
        skips, repeats = self._skips(chain), self._repeats(chain)
        rng.shuffle(skips)
        rng.shuffle(repeats)
        if influence:
            skips.sort(key=lambda one: sum(influence[layer] for layer in chain.layers[one[0][0] : sum(one[0])]))
        return (edited for _, edited in even([iter(pool) for pool in (skips, repeats)], rng))

    def _skips(self, chain: Chain) -> list[tuple[_Block, Chain]]:
        raise NotImplementedError

    def _repeats(self, chain: Chain) -> list[tuple[_Block, Chain]]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PolarSpace(_Ordered):
    """Segments of at most `max_block` layers, each skipped, kept or passed once more: arXiv 2606.06574.

    An edit turns one block of kept layers into such a segment, so nothing nests and no edit is undone.
    `min_edit_layer`: layers before it are always kept.
    """

    name: ClassVar[str] = "polar"
    num_layers: int
    min_length: int
    max_length: int
    max_block: int = MAX_BLOCK
    min_edit_layer: int = 0

    def __post_init__(self) -> None:
        check_range("max_block", self.max_block, MAX_BLOCK)
        check_lengths(self)

    @classmethod
    def of(
        cls,
        num_layers: int,
        *,
        max_block: int = MAX_BLOCK,
        min_edit_layer: int = 0,
        min_length: int = 1,
        max_length: int | None = None,
    ) -> "PolarSpace":
        """The space around the full chain. Raises ChainError if no edit of it stays within the bounds."""
        longest = MAX_GROWTH * num_layers if max_length is None else max_length
        space = cls(num_layers, min_length, longest, max_block, min_edit_layer)
        check_not_empty(space, "segment")
        return space

    def count_below(self, length: int) -> int:
        counts = _counts(self.num_layers, self.min_edit_layer, self.max_block, None)
        return sum(counts[one] for one in range(self.min_length, length))

    def _skips(self, chain: Chain) -> list[tuple[_Block, Chain]]:
        blocks = _kept_blocks(chain, self.max_block, self.min_edit_layer)
        return [(block, chain.skip(*block)) for block in blocks if holds(self, len(chain) - block[1])]

    def _repeats(self, chain: Chain) -> list[tuple[_Block, Chain]]:
        blocks = _kept_blocks(chain, self.max_block, self.min_edit_layer)
        return [(block, chain.repeat(*block, 1)) for block in blocks if holds(self, len(chain) + block[1])]


@dataclass(frozen=True, slots=True)
class DrLLMSpace(_Ordered):
    """Each layer skipped, executed or repeated once, no three in a row skipped: arXiv 2510.12773."""

    name: ClassVar[str] = "drllm"
    max_skip_run: ClassVar[int] = 2
    num_layers: int
    min_length: int
    max_length: int
    min_edit_layer: int = 0

    def __post_init__(self) -> None:
        check_lengths(self)

    @classmethod
    def of(
        cls, num_layers: int, *, min_edit_layer: int = 0, min_length: int = 1, max_length: int | None = None
    ) -> "DrLLMSpace":
        """The space around the full chain. Raises ChainError if no edit of it stays within the bounds."""
        longest = MAX_GROWTH * num_layers if max_length is None else max_length
        space = cls(num_layers, min_length, longest, min_edit_layer)
        check_not_empty(space, "skip or repeat")
        return space

    def count_below(self, length: int) -> int:
        counts = _counts(self.num_layers, self.min_edit_layer, 1, self.max_skip_run)
        return sum(counts[one] for one in range(self.min_length, length))

    def _skips(self, chain: Chain) -> list[tuple[_Block, Chain]]:
        blocks = _kept_blocks(chain, self.max_skip_run, self.min_edit_layer)
        skips = [(block, chain.skip(*block)) for block in blocks if holds(self, len(chain) - block[1])]
        return [one for one in skips if _longest_gap(one[1], self.num_layers) <= self.max_skip_run]

    def _repeats(self, chain: Chain) -> list[tuple[_Block, Chain]]:
        blocks = _kept_blocks(chain, 1, self.min_edit_layer) if holds(self, len(chain) + 1) else []
        return [(block, chain.repeat(*block, 1)) for block in blocks]


def _kept_blocks(chain: Chain, max_block: int, first_layer: int) -> list[_Block]:
    """Every run of at most `max_block` neighbouring layers, from `first_layer` on, that are visited once each."""
    visits = Counter(chain.layers)
    blocks = []
    for visit, layer in enumerate(chain.layers):
        for size in range(1, max_block + 1):
            run = tuple(range(layer, layer + size))
            if chain.layers[visit : visit + size] != run or any(visits[one] > 1 for one in run):
                break
            if layer >= first_layer:
                blocks.append((visit, size))
    return blocks


def _longest_gap(chain: Chain, num_layers: int) -> int:
    """Most neighbouring layers that an order-preserving chain leaves out."""
    return max(after - before - 1 for before, after in pairwise((-1, *sorted(set(chain.layers)), num_layers)))


def _counts(num_layers: int, first_layer: int, max_block: int, max_run: int | None) -> Counter[int]:
    """How many chains there are of each length: layer by layer, each is skipped, kept or begins a repeated block."""
    # By layer: how many ways lead there, by (layers just skipped, visits so far).
    ways: list[Counter[tuple[int, int]]] = [Counter() for _ in range(num_layers + 1)]
    ways[min(first_layer, num_layers)][0, min(first_layer, num_layers)] = 1
    for layer in range(first_layer, num_layers):
        for (run, length), count in ways[layer].items():
            if max_run is None or run < max_run:
                ways[layer + 1][0 if max_run is None else run + 1, length] += count
            ways[layer + 1][0, length + 1] += count
            for size in range(1, min(max_block, num_layers - layer) + 1):
                ways[layer + size][0, length + 2 * size] += count
    counts: Counter[int] = Counter()
    for (_, length), count in ways[num_layers].items():
        counts[length] += count
    return counts
