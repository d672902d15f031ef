"""One rank's part of a language model on one stage of a pipeline, as a backend.

Every rank makes the same calls in the same order, those of other stages' layers as well: so each knows where every row
is, and the ranks of two stages meet where rows change from one to the other. Sizes are those of the whole model's
carries, whatever a rank has of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models.artifact import LanguageSpec
from models.parallel.model import ShardedModel
from models.parallel.moving import moved, whole
from models.parallel.staged import Staged, Station, join_staged
from models.parallel.stages import NO_LAYER
from models.parallel.stream import Stream
from service.backends.kv import PAGE_SIZE
from service.backends.parts import LanguageBackend, Parts, Pass
from service.backends.pools import Pool, pools_of
from service.backends.protocol import Array, Carry, Ints, Past, Rows
from service.backends.sharded import ShardedArrays, device_of, local_spec, parts_of


class StagedArrays(ShardedArrays):
    """Tensors of one rank, and rows that lie on any stage."""

    def join(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return join_staged(arrays) if isinstance(arrays[0], Staged) else super().join(arrays, axis)


class StagedBackend(LanguageBackend):
    """The layers and pages of one stage; outputs of the others' are of the right shape and mean nothing."""

    def __init__(
        self,
        parts: Parts,
        language: LanguageSpec,
        arrays: ShardedArrays,
        station: Station,
        num_pages: int = 0,
        page_size: int = PAGE_SIZE,
    ) -> None:
        """language: of this rank's heads; num_pages: of all stages."""
        self._pages = station.stages.pages(num_pages)
        super().__init__(parts, language, arrays, len(self._pages[station.stage]), page_size)
        self.station, self._num_pages = station, num_pages

    @property
    def num_pages(self) -> int:
        return self._num_pages

    @property
    def pools(self) -> tuple[Pool, ...]:
        """For each stage the layers and the pages it has."""
        return pools_of(self.station.stages, self._num_pages)

    @property
    def has_outputs(self) -> bool:
        """Whether what `head` and `stream` return here means anything."""
        return self.station.head == self.station.stage

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        begun = super().embed(inputs, rows)
        count = len(inputs["token_ids"])
        hidden = Staged(self.station, np.full(count, NO_LAYER), np.zeros(count, np.int64), begun.hidden)
        return Pass(hidden, begun.shared)

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        assert rows is not None
        assert _are_within(self._pages[self.station.stages.of(index)], rows.pages)  # on all ranks, or on none
        here = moved(carry.hidden, index)
        if here is None:
            made, kept = None, self._nothing_of(carry) if rows.keep else ()
        else:
            visited = super().layer(index, Pass(here, carry.shared), self._own(rows))
            made, kept = visited.hidden, visited.kept
        where = carry.hidden.visited(index, made)
        return Pass(where, carry.shared, tuple(Staged(self.station, where.last, where.num_visits, one) for one in kept))

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        assert tokens is not None
        picked = whole(carry.hidden, self.station.head, tokens)
        if picked is None:
            return {"logits": _hollow(*tokens.shape, self._language.vocab_size)}
        (logits,) = self._parts.head(Stream(picked))
        return {"logits": self._arrays.give_out(logits)}

    def stream(self, carry: Carry) -> Array:
        found = whole(carry.hidden, self.station.head)
        if found is None:
            return _hollow(len(carry.hidden.last), carry.shared[0].shape[1], self.station.config.hidden_size)
        return self._arrays.give_out(found)

    def _own(self, rows: Rows) -> Rows:
        """Rows of a visit on this stage: the pages as they are counted here, and the past that is here."""
        first = self._pages[self.station.stage].start
        pages = None if rows.pages is None else rows.pages - first  # what was -1 is below 0 still
        past = [Past(Pass(None, (), tuple(one.here for one in each.carry.kept)), each.length) for each in rows.past]
        return replace(rows, pages=pages, past=past)

    def _nothing_of(self, carry: Carry) -> tuple[Any, Any]:
        """Keys and values of no row here."""
        num_tokens = carry.shared[0].shape[1]
        shape = (0, self._language.num_kv_heads, num_tokens, self._language.head_size)
        return self._arrays.zeros(shape), self._arrays.zeros(shape)


def staged_backend(
    shard: ShardedModel,
    language: LanguageSpec,
    station: Station,
    num_pages: int = 0,
    page_size: int = PAGE_SIZE,
    arrays: StagedArrays | None = None,
) -> StagedBackend:
    """The backend of one rank's part of a stage of a model that `language` describes whole."""
    found = arrays or StagedArrays(shard.group, device_of(shard), shard.dtype)
    return StagedBackend(parts_of(shard), local_spec(shard, language), found, station, num_pages, page_size)


def _are_within(part: range, pages: Ints | None) -> bool:
    """Whether all pages that there are lie in one part."""
    return pages is None or bool(((pages < 0) | ((pages >= part.start) & (pages < part.stop))).all())


def _hollow(*shape: int) -> Array:
    """Numbers that another rank has: no memory but their shape's."""
    return np.broadcast_to(np.float32(0), shape)
