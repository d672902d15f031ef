"""Rows of a pass of which each lies on the stage of the layer that it visited last. Knows no message.

Where a row is, and what is on its way to it, every rank knows without being told: it follows from the visits alone,
which all ranks make alike. A rank has the numbers of those rows that lie on its own stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from models.lm.config import LMConfig
from models.parallel.crossing import Crossing
from models.parallel.group import Group
from models.parallel.layer import attention_reads, num_pending
from models.parallel.stages import NO_LAYER, Stages
from models.parallel.stream import Places, Stream, inverse, join

# Rows are picked, put back and joined alike in both.
Held: TypeAlias = Stream | Tensor


@dataclass(frozen=True)
class Station:
    """Where a rank stands: on which stage of a model, with whom, and how it reaches the others."""

    config: LMConfig
    stages: Stages
    crossing: Crossing
    group: Group

    @property
    def stage(self) -> int:
        return self.crossing.stage

    @property
    def head(self) -> int:
        """The stage that has the head."""
        return self.stages.head(self.config.is_tied)

    @cached_property
    def num_pending(self) -> Places:
        """Outputs that a visit of each layer leaves on their way to a row [L + 1]; none where NO_LAYER looks."""
        counts = [num_pending(self.config, layer) for layer in range(self.stages.num_layers)]
        return np.asarray([*counts, 0])

    @cached_property
    def stage_of(self) -> Places:
        """The stage of each layer [L + 1], and where NO_LAYER looks of what was only embedded."""
        return np.asarray([*map(self.stages.of, range(self.stages.num_layers)), self.stages.of(NO_LAYER)])

    def waits(self, last: Places, layer: int) -> Places:
        """Of rows by the layer each visited last: whose MLP's output the attention of `layer` does not read, bool."""
        residual = self.config.residual
        late = [
            one not in (NO_LAYER, *self.config.without_mlp) and not attention_reads(residual, layer, "mlp", one)
            for one in last.tolist()
        ]
        return np.asarray(late, np.bool_)


class Staged:
    """Rows [B, ...] on their stages: `here` has those of this rank's stage, in order.

    last [B]: the layer that each visited last, or NO_LAYER. num_visits [B]: of each so far. Both are alike on all
    ranks, and never changed in place.
    """

    def __init__(self, station: Station, last: Places, num_visits: Places, here: Held) -> None:
        self.station, self.last, self.num_visits, self.here = station, last, num_visits, here
        assert len(numbers(here)) == len(self.rows_on(station.stage))

    @property
    def stages(self) -> Places:
        """The stage of each row [B]."""
        found: Places = self.station.stage_of[self.last]
        return found

    @property
    def nbytes(self) -> int:
        """Memory of all rows and of what is on its way to them, on a rank of the stage of each."""
        count = len(self.last)
        if isinstance(self.here, Stream):
            count += int(self.station.num_pending[self.last].sum())
        one = numbers(self.here)
        return count * prod(one.shape[1:]) * one.element_size()

    def rows_on(self, stage: int) -> Places:
        """The rows that lie on a stage."""
        return np.flatnonzero(self.stages == stage)

    def visited(self, layer: int, here: Held | None) -> "Staged":
        """What a visit of a layer by every row has made of them, on the layer's stage; nothing elsewhere."""
        nothing = numbers(self.here).new_empty((0, *numbers(self.here).shape[1:]))
        made = Stream(nothing) if here is None else here
        return Staged(self.station, np.full_like(self.last, layer), self.num_visits + 1, made)

    def __getitem__(self, rows: Any) -> "Staged":
        last, num_visits = self.last[rows], self.num_visits[rows]
        return Staged(self.station, last, num_visits, self.here[self._here(rows)])

    def __setitem__(self, rows: Any, part: "Staged") -> None:
        """Replace some rows by those of `part`, wherever either lie."""
        own, count = self.station.stage, len(self.last)
        before, replaced, came = self.rows_on(own), np.arange(count)[rows], part.rows_on(own)
        if np.isin(replaced, before).all() and len(came) == len(replaced):
            here: Any = self.here  # of either kind, as the part is
            here[self._here(rows)] = part.here
        elif np.isin(replaced, before).any() or len(came):
            kept = np.setdiff1d(before, replaced)
            left = self.here[inverse(before, count)[kept]]
            self.here = in_order((left, part.here), (kept, replaced[came]))
        self.last, self.num_visits = self.last.copy(), self.num_visits.copy()
        self.last[rows], self.num_visits[rows] = part.last, part.num_visits

    def _here(self, rows: Any) -> Any:
        """Of these rows those that lie here, by their places in `here`."""
        own = self.rows_on(self.station.stage)
        if len(own) == len(self.last):
            return rows
        places = inverse(own, len(self.last))[rows]
        return places[places >= 0]


def join_staged(parts: Sequence[Staged]) -> Staged:
    """The rows of several, one after the other."""
    last, num_visits = (
        np.concatenate(each) for each in zip(*((one.last, one.num_visits) for one in parts), strict=True)
    )
    return Staged(parts[0].station, last, num_visits, _joined([one.here for one in parts]))


def in_order(parts: Sequence[Held], rows: Sequence[Places]) -> Any:
    """The rows of several parts as one, in the order of the numbers that they have as `rows`."""
    joined, numbered = (parts[0] if len(parts) == 1 else _joined(parts)), np.concatenate(rows)
    return joined if (np.diff(numbered) > 0).all() else joined[np.argsort(numbered)]


def numbers(held: Held) -> Tensor:
    """Those of a stream that have landed, or all there are."""
    return held.landed if isinstance(held, Stream) else held


def _joined(parts: Sequence[Any]) -> Any:
    return join(parts) if isinstance(parts[0], Stream) else torch.cat(tuple(parts))
