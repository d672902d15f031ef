"""Where a Hugging Face decoder checkpoint has each of our parameters, whole or in part. Knows names, reads by slice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from models.errors import ArtifactError
from models.lm.architectures import Architecture
from models.lm.config import LMConfig
from models.shards import Cut, Shards

_EXPERTS = (".mlp.gate_up_proj", ".mlp.down_proj")
# The two matrices of a projection of low rank: stored one by one, as they are, whatever the architecture fuses.
_PIECES = (".first.weight", ".second.weight", ".second.bias")
_PLACES = {".q_proj.": 0, ".k_proj.": 1, ".v_proj.": 2, ".gate_proj.": 0, ".up_proj.": 1}

Runs: TypeAlias = tuple[tuple[int, int], ...]


class Source(Protocol):
    """The tensors of a checkpoint that one parameter is made of, and how."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def shape(self, shards: Shards) -> tuple[int, ...]:
        """Of the whole parameter, from headers alone."""
        ...

    def read(self, shards: Shards, cut: Cut | None = None) -> Tensor:
        """The parameter, or what `cut` leaves of it; nothing else is read. Raises ArtifactError."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A parameter that is one tensor, perhaps with rows and columns exchanged."""

    name: str
    is_transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shape(self, shards: Shards) -> tuple[int, ...]:
        stored = shards.shape(self.name)
        return stored[::-1] if self.is_transposed else stored

    def read(self, shards: Shards, cut: Cut | None = None) -> Tensor:
        if not self.is_transposed:
            return shards.read(self.name, cut)
        return shards.read(self.name, cut and Cut(1 - cut.dim, cut.runs)).t()


@dataclass(frozen=True, slots=True)
class Fused:
    """A parameter that is some of the rows of a tensor, `num_rows` in all; of its columns where it is transposed."""

    name: str
    runs: Runs
    num_rows: int
    is_transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shape(self, shards: Shards) -> tuple[int, ...]:
        stored = shards.shape(self.name)
        dim = self._dim(stored)
        if stored[dim] != self.num_rows:
            raise ArtifactError(
                f"the fused projection {self.name!r} has {stored[dim]} rows; config.json asks for {self.num_rows}"
            )
        rest = stored[:dim] + stored[dim + 1 :]
        return (sum(stop - start for start, stop in self.runs), *rest)

    def read(self, shards: Shards, cut: Cut | None = None) -> Tensor:
        assert cut is None or cut.dim == 0, "fused projections are cut by their outputs alone"
        self.shape(shards)
        dim = self._dim(shards.shape(self.name))
        taken = self.runs if cut is None else tuple(_part(self.runs, cut.runs))
        part = shards.read(self.name, Cut(dim, taken))
        return part.t() if dim == 1 else part

    def _dim(self, stored: tuple[int, ...]) -> int:
        return 1 if self.is_transposed and len(stored) == 2 else 0


@dataclass(frozen=True, slots=True)
class Stacked:
    """A parameter [E, rows, columns] of experts that are stored one by one, `per_expert` tensors below each other."""

    names: tuple[str, ...]
    per_expert: int

    def shape(self, shards: Shards) -> tuple[int, ...]:
        rows, columns = shards.shape(self.names[0])
        return len(self.names) // self.per_expert, self.per_expert * rows, columns

    def read(self, shards: Shards, cut: Cut | None = None) -> Tensor:
        assert cut is None or cut.dim > 0, "experts are cut inside each"
        num_rows = shards.shape(self.names[0])[0]
        parts = [shards.read(name, self._cut(place, cut, num_rows)) for place, name in enumerate(self.names)]
        each = zip(*[iter(parts)] * self.per_expert, strict=True)
        return torch.stack([one[0] if len(one) == 1 else torch.cat(one) for one in each])

    def _cut(self, place: int, cut: Cut | None, num_rows: int) -> Cut | None:
        if cut is None or cut.dim == 2:
            return cut and Cut(1, cut.runs)
        first = place % self.per_expert * num_rows
        inside = ((max(start - first, 0), min(stop - first, num_rows)) for start, stop in cut.runs)
        return Cut(0, tuple((start, stop) for start, stop in inside if start < stop))


def source(name: str, architecture: Architecture, config: LMConfig, there: frozenset[str]) -> Source:
    """What one of our parameters is made of."""
    if name.endswith(_PIECES):
        return Whole(_present(stored_name(name, architecture), architecture, there))
    if name.endswith(_EXPERTS) and config.experts:
        return _experts(name, architecture, config.experts.count, there)
    for part, (whole, cut) in architecture.fused.items():
        if part in name:
            stored = _present(stored_name(name.replace(part, whole), architecture), architecture, there)
            runs, num_rows = _runs(_PLACES[part[part.rindex(".", 0, -1) :]], cut, config, part)
            return Fused(stored, runs, num_rows, architecture.is_transposed)
    stored = _present(stored_name(name, architecture), architecture, there)
    is_matrix = architecture.is_transposed and name.startswith("layers.")
    return Whole(stored, is_matrix and "norm" not in name and name.endswith("weight"))


def stored_name(name: str, architecture: Architecture) -> str:
    """The checkpoint's name of one of our parameters."""
    stored = name
    for ours, theirs in architecture.names.items():
        if ours in name:
            stored = stored.replace(ours, theirs, 1)
    return stored if name.startswith("head.lm_head") else architecture.prefix + stored


def _present(stored: str, architecture: Architecture, there: frozenset[str]) -> str:
    """The name as it stands in the file: base models leave the prefix out."""
    bare = stored.removeprefix(architecture.prefix)
    return bare if stored not in there and bare in there else stored


def _experts(name: str, architecture: Architecture, count: int, there: frozenset[str]) -> Source:
    """Experts as one tensor, from one tensor each or as they are."""
    layer, _, projection = name.rpartition(".")
    stacked = _present(stored_name(f"{layer}.experts.{projection}", architecture), architecture, there)
    if stacked in there:
        return Whole(stacked)
    projections = ("gate_proj", "up_proj") if projection == "gate_up_proj" else ("down_proj",)
    if count > len(there):
        raise ArtifactError(f"config.json says there are {count} experts and the checkpoint has {len(there)} tensors")
    names = (f"{layer}.experts.{expert}.{one}.weight" for expert in range(count) for one in projections)
    return Stacked(
        tuple(_present(stored_name(one, architecture), architecture, there) for one in names), len(projections)
    )


def _runs(place: int, cut: str, config: LMConfig, part: str) -> tuple[Runs, int]:
    """The rows of one projection in a fused tensor, a run or one of each head, and the rows of all of them."""
    size, heads = config.head_size, config.num_attention_heads
    if cut == "heads":
        starts = ((3 * head + place) * size for head in range(heads))
        return tuple((start, start + size) for start in starts), 3 * heads * size
    query, kv = heads * size, config.num_key_value_heads * size
    sizes = [query, kv, kv] if part.startswith(".self_attn") else [config.intermediate_size] * 2
    return ((sum(sizes[:place]), sum(sizes[: place + 1])),), sum(sizes)


def _part(runs: Runs, wanted: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The places `wanted` of runs laid end to end, as runs of their own."""
    for first, last in wanted:
        passed = 0
        for start, stop in runs:
            low, high = max(first - passed, 0), min(last - passed, stop - start)
            if low < high:
                yield start + low, start + high
            passed += stop - start
