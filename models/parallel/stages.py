"""Which stage of a pipeline has what of a model: a run of layers, perhaps an end, its part of the pages.

A stage is as many consecutive ranks as tensor parallelism has, and every layer is on one stage. Standard library only.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from models.errors import BackendError

# What stands for the layer of a row that has visited none.
NO_LAYER = -1


@dataclass(frozen=True, slots=True)
class Part:
    """What one stage has of a model: a run of its layers, and perhaps the embedding and the head."""

    layers: range
    has_embedding: bool = True
    has_head: bool = True

    def has(self, parameter: str) -> bool:
        """Whether a parameter of that name, such as layers.3.mlp.up_proj.weight, is one of its own."""
        module, _, rest = parameter.partition(".")
        if module == "layers":
            return int(rest.partition(".")[0]) in self.layers
        return self.has_embedding if module == "embed" else self.has_head


@dataclass(frozen=True, slots=True)
class Stages:
    """Runs of layers from one of `bounds` to before the next, one for each stage."""

    bounds: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_layers(self) -> int:
        return self.bounds[-1]

    def of(self, layer: int) -> int:
        """The stage that has a layer; of NO_LAYER the first, which has the embedding."""
        return max(bisect_right(self.bounds, layer) - 1, 0)

    def layers(self, stage: int) -> range:
        """The layers of a stage."""
        return range(self.bounds[stage], self.bounds[stage + 1])

    def pages(self, num_pages: int) -> list[range]:
        """For each stage its part of the pages of keys and values: as large as its part of the layers."""
        ends = [num_pages * bound // self.num_layers for bound in self.bounds]
        return [range(first, end) for first, end in pairwise(ends)]

    def head(self, is_tied: bool) -> int:
        """The stage that has the head: the last, unless the head has the weights of the embedding, which are first."""
        return 0 if is_tied else self.count - 1

    def part(self, stage: int, is_tied: bool) -> Part:
        """What a stage has."""
        return Part(self.layers(stage), stage == 0, stage == self.head(is_tied))

    def told(self, num_ranks: int, is_tied: bool) -> str:
        """A line for the log: which of the ranks, so many to a stage, have what."""
        return ", ".join(self._told(stage, num_ranks, self.part(stage, is_tied)) for stage in range(self.count))

    @staticmethod
    def _told(stage: int, num_ranks: int, part: Part) -> str:
        ranks = _run("rank", range(stage * num_ranks, (stage + 1) * num_ranks))
        embedding = " with the embedding" if part.has_embedding else ""
        head = " and the head" if part.has_embedding else " with the head"
        return f"{ranks}: {_run('layer', part.layers)}{embedding}{head if part.has_head else ''}"


def deal(num_layers: int, num_stages: int, given: Sequence[int] = ()) -> Stages:
    """Stages of so many layers as are `given`, or else as even as they go. Raises BackendError."""
    if not 1 <= num_stages <= num_layers:
        raise BackendError(
            f"{num_stages} stages of a pipeline and the model has {num_layers} layers; use at most {num_layers}, "
            "or share each layer between more ranks"
        )
    if not given:
        return Stages(tuple(num_layers * stage // num_stages for stage in range(num_stages + 1)))
    if len(given) != num_stages or sum(given) != num_layers or min(given) < 1:
        raise BackendError(
            f"layers {list(given)} are given to the stages of a pipeline; the model has {num_layers} and there are "
            f"{num_stages} stages: give {num_stages} numbers from 1 on that add up to {num_layers}"
        )
    return Stages((0, *accumulate(given)))


def _run(name: str, numbers: range) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{name} {first}" if first == last else f"{name}s {first} to {last}"
