"""Chain: the layers one sample visits, in order. Standard library only; knows no model."""

import re
from dataclasses import dataclass
from itertools import pairwise

from models.errors import ChainError

_RUN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
# Far above any bound a model sets, far below what could hurt: text such as "0-999999999" must not fill the memory.
_MAX_PARSED = 10_000
# Of 100 layers 0.29 are 29, though the float product is a little less.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, order=True)
class Chain:
    """The layers one sample visits, in order; a *visit* is a position in `layers`."""

    layers: tuple[int, ...]

    @classmethod
    def full(cls, num_layers: int) -> "Chain":
        """Every layer once, in order."""
        return cls(tuple(range(num_layers)))

    @classmethod
    def of_depth(cls, num_layers: int, depth: float) -> "Chain":
        """The static rule of a budget: as many layers as it allows, evenly spaced, the first and the last among them.

        depth: an int is a number of layers, a float in (0, 1] a fraction of them, rounded down to no less than one
        layer; of a single layer it is the first. Raises ChainError for more layers than there are, or none.
        """
        if not (1 <= depth <= num_layers if isinstance(depth, int) else 0 < depth <= 1):
            raise ChainError(
                f"depth {depth} does not fit; send 1 to {num_layers} layers, or a fraction above 0 up to 1.0"
            )
        kept = depth if isinstance(depth, int) else max(1, int(depth * num_layers + _ROUNDING))
        gaps = max(kept - 1, 1)
        return cls(tuple((2 * place * (num_layers - 1) + gaps) // (2 * gaps) for place in range(kept)))

    @classmethod
    def parse(cls, text: str) -> "Chain":
        """Read the text form, for example `0-3,5,5,7-11`. Raises ChainError naming the part it cannot read."""
        layers: list[int] = []
        for part in text.split(","):
            match = _RUN.fullmatch(part.strip())
            if match is None:
                raise ChainError(f"chain part {part[:40]!r} is neither a layer nor a run; write it like '0-3,5,5,7-11'")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ChainError(f"chain run {part!r} goes down; write its layers one by one, like '5,4,3'")
            if len(layers) + last - first + 1 > _MAX_PARSED:
                raise ChainError(f"chain part {part!r} makes more than {_MAX_PARSED} visits; shorten the chain")
            layers.extend(range(first, last + 1))
        return cls(tuple(layers))

    def format(self) -> str:
        """Write the text form, runs joined: the inverse of `parse`."""
        starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(self.layers)) if b != a + 1)]
        ends = [*starts[1:], len(self.layers)]
        runs = ((self.layers[start], self.layers[end - 1]) for start, end in zip(starts, ends, strict=True))
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) if self.layers else ""

    def skip(self, visit: int, count: int) -> "Chain":
        """Leave out `count` visits from `visit` on."""
        self._check_block(visit, count)
        return Chain(self.layers[:visit] + self.layers[visit + count :])

    def repeat(self, visit: int, count: int, times: int) -> "Chain":
        """Make the `count` visits from `visit` on `times` more times, right after themselves."""
        self._check_block(visit, count)
        if times < 1:
            raise ChainError(f"a block cannot be repeated {times} more times; use 1 or more")
        end = visit + count
        return Chain(self.layers[:end] + self.layers[visit:end] * times + self.layers[end:])

    def check(self, num_layers: int, max_length: int) -> "Chain":
        """Return the chain itself if a model of `num_layers` can run it. Raises ChainError otherwise."""
        if not self.layers:
            raise ChainError("the chain is empty; name at least one layer, or send 'full'")
        if len(self.layers) > max_length:
            raise ChainError(f"the chain has {len(self.layers)} visits; this model takes at most {max_length}")
        for visit, layer in enumerate(self.layers):
            if not 0 <= layer < num_layers:
                raise ChainError(f"visit {visit} names layer {layer}; the model has layers 0 to {num_layers - 1}")
        return self

    def _check_block(self, visit: int, count: int) -> None:
        if count < 1 or visit < 0 or visit + count > len(self.layers):
            raise ChainError(
                f"a block of {count} visits from visit {visit} does not lie inside a chain of {len(self.layers)} visits"
            )

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return self.format()
