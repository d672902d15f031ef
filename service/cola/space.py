"""The space of edits: which chains lie one skip or repeat away from a chain. Knows no search, reward or model."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from models.chain import Chain
from models.errors import ChainError

OPERATIONS = ("skip", "repeat")
# Blocks of 1 to 4 visits, 1 to 4 extra copies: arXiv 2507.07996, section 3.
MAX_BLOCK = 4
MAX_REPEATS = 4
# The paper bounds the length without giving the bound; this one is ours.
_MAX_GROWTH = 2
# A skip in the formula `new length = length + block * times`, where a repeat has 1 to 4 times.
_SKIPPED = -1


@dataclass(frozen=True, slots=True)
class Space:
    """Bounds on edits and on the chains they make: lengths in visits, both ends included.

    `max_block` in 1..4: visits one edit covers. `max_repeats` in 1..4: extra copies one repeat makes.
    Raises ChainError if no chain can lie within the bounds.
    """

    min_length: int
    max_length: int
    operations: tuple[str, ...] = OPERATIONS
    max_block: int = MAX_BLOCK
    max_repeats: int = MAX_REPEATS

    def __post_init__(self) -> None:
        _check_operations(self.operations)
        _check_range("max_block", self.max_block, MAX_BLOCK)
        _check_range("max_repeats", self.max_repeats, MAX_REPEATS)
        if self.min_length < 1:
            raise ChainError(f"min_length is {self.min_length}; a chain has at least 1 visit, use 1 or more")
        if self.min_length > self.max_length:
            raise ChainError(
                f"min_length {self.min_length} is above max_length {self.max_length}; lower the one or raise the other"
            )

    @classmethod
    def of(
        cls,
        num_layers: int,
        *,
        operations: Iterable[str] = OPERATIONS,
        max_block: int = MAX_BLOCK,
        max_repeats: int = MAX_REPEATS,
        min_length: int = 1,
        max_length: int | None = None,
    ) -> "Space":
        """The space around the full chain of `num_layers`, at most twice as long unless told otherwise.

        Raises ChainError also if no edit of the full chain stays within the bounds: a search could not begin.
        """
        if num_layers < 1:
            raise ChainError(f"a model of {num_layers} layers has no chains to search; choose a layered model")
        longest = _MAX_GROWTH * num_layers if max_length is None else max_length
        space = cls(min_length, longest, tuple(operations), max_block, max_repeats)
        if not space._variants(num_layers):
            raise ChainError(
                f"no {' or '.join(space.operations)} of the {num_layers} visits of the full chain gives a length from "
                f"{space.min_length} to {space.max_length}; widen the lengths, max_block or the operations"
            )
        return space

    def edits(self, chain: Chain) -> list[Chain]:
        """The chains one edit away, each once: skips before repeats, then by block, extra copies and visit."""
        blocks = [block for variant in self._variants(len(chain)).values() for block in variant]
        edited = (_apply(chain, visit, *block) for block in blocks for visit in range(len(chain) - block[0] + 1))
        return list(dict.fromkeys(edited))

    def draw(self, chain: Chain, rng: random.Random) -> Iterator[Chain]:
        """The same chains in random order, made one by one; those that several edits make come several times.

        Each draw picks the operation, then block and copies, then the visit, each evenly: four of five edits are
        repeats, and even odds over all edits would starve the skips. No visit is favoured.
        """
        pools = [
            [(_shuffled(len(chain) - block + 1, rng), block, times) for block, times in variant]
            for variant in self._variants(len(chain)).values()
        ]
        while pools:
            pool = rng.choice(pools)
            visits, block, times = entry = rng.choice(pool)
            visit = next(visits, None)
            if visit is not None:
                yield _apply(chain, visit, block, times)
                continue
            pool.remove(entry)
            if not pool:
                pools.remove(pool)

    def _variants(self, length: int) -> dict[str, list[tuple[int, int]]]:
        """By operation, the (block, times) whose result has a length within the bounds; no empty lists."""
        times = {"skip": (_SKIPPED,), "repeat": range(1, self.max_repeats + 1)}
        blocks = range(1, min(self.max_block, length) + 1)
        allowed = {
            operation: [(b, t) for b in blocks for t in times[operation] if self._holds(length + b * t)]
            for operation in OPERATIONS
            if operation in self.operations
        }
        return {operation: variant for operation, variant in allowed.items() if variant}

    def _holds(self, length: int) -> bool:
        return self.min_length <= length <= self.max_length


def _apply(chain: Chain, visit: int, block: int, times: int) -> Chain:
    return chain.skip(visit, block) if times == _SKIPPED else chain.repeat(visit, block, times)


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    # A generator, so that a node pays only for the blocks it draws from: deep models have thousands of edits.
    yield from rng.sample(range(count), count)


def _check_operations(operations: tuple[str, ...]) -> None:
    if not operations:
        raise ChainError(f"the space has no operations; name at least one of {', '.join(OPERATIONS)}")
    for operation in operations:
        if operation not in OPERATIONS:
            raise ChainError(f"operation {operation!r} is unknown; use {' or '.join(OPERATIONS)}")


def _check_range(name: str, value: int, limit: int) -> None:
    if not 1 <= value <= limit:
        raise ChainError(f"{name} is {value}; use 1 to {limit}")
