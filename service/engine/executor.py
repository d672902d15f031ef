"""Runs one batch, each row along its own chain: a loop over the plan's groups. Decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Protocol

import numpy as np

from models.chain import Chain
from service.backends.protocol import Array, Backend, Carry, Fusing, Ints, Rows, Selection, State
from service.engine.often import OftenAsked
from service.engine.plan import Group, plan


class LayerCounter(Protocol):
    """Counts the work of layers: one call is one `Backend.layer`."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        """`rows` samples made a visit together, with `tokens` real tokens among them."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one pass.

    inputs: arrays with B rows each. chains [B]; rows of equal chains are best side by side. For language models also
    starts [B], lengths [B], the tokens [B, T] whose logits are wanted, and the pages of every visit, pages
    [B, longest chain, N], or None to cache nothing. For recurrent models the states [B][visits], which the pass
    replaces in these lists, and whether they outlive the batch.
    """

    inputs: Mapping[str, Array]
    chains: tuple[Chain, ...]
    starts: Ints | None = None
    lengths: Ints | None = None
    tokens: Ints | None = None
    pages: Ints | None = None
    states: Sequence[list[State]] | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """One group of a plan, ready to index arrays with; rows None are all of them."""

    layer: int
    rows: Selection | None
    visits: Ints | int
    num_rows: int


class Executor:
    """One backend and the loop that walks a batch through it."""

    def __init__(self, backend: Backend, counter: LayerCounter) -> None:
        self._backend, self._counter = backend, counter
        self._often = OftenAsked(backend.fused) if isinstance(backend, Fusing) and backend.fused else None

    def run(self, batch: Batch) -> dict[str, Array]:
        """Outputs by name, one row per chain, in the order of the batch."""
        if self._often and (graph := self._often.graph(batch.chains)):
            num_rows = len(batch.chains)
            tokens = num_rows if batch.lengths is None else int(batch.lengths.sum())
            for layer in batch.chains[0].layers:
                self._counter.count_layer_call(layer, num_rows, tokens)
            return graph(batch.inputs, batch.states, batch.keep)
        return self._backend.head(self._walk(batch), batch.tokens)

    def stream(self, batch: Batch) -> Array:
        """The residual stream after the last visit [B, ..., D], in the order of the batch; the head is not run."""
        return self._backend.stream(self._walk(batch))

    def close(self) -> None:
        """Prepare nothing any more."""
        if self._often:
            self._often.close()

    def _walk(self, batch: Batch) -> Carry:
        carry = self._backend.embed(batch.inputs, _all_rows(batch))
        for call in _calls(batch.chains) if self._backend.num_layers else ():
            carry = self._visit(call, carry, batch)
        return carry

    def _visit(self, call: _Call, carry: Carry, batch: Batch) -> Carry:
        kept = batch.states if batch.states is not None else ()
        places = _places(call) if kept else ()
        rows = _rows(batch, call, [kept[row][visit] for row, visit in places] if kept else None)
        tokens = call.num_rows if rows is None else int(rows.lengths.sum())
        self._counter.count_layer_call(call.layer, call.num_rows, tokens)
        carry = self._call(call, carry, rows)
        if rows is not None and rows.states is not None:
            for (row, visit), state in zip(places, rows.states, strict=True):
                kept[row][visit] = state
        return carry

    def _call(self, call: _Call, carry: Carry, rows: Rows | None) -> Carry:
        if call.rows is None:
            return self._backend.layer(call.layer, carry, rows)
        part = self._backend.select(carry, call.rows)
        return self._backend.merge(carry, call.rows, self._backend.layer(call.layer, part, rows))


@lru_cache(maxsize=256)  # tens of kilobytes each
def _calls(chains: tuple[Chain, ...]) -> tuple[_Call, ...]:
    return tuple(_call(group, len(chains)) for group in plan(chains))


def _call(group: Group, num_rows: int) -> _Call:
    first, count = group.rows[0], len(group.rows)
    visits = group.visits[0] if len(set(group.visits)) == 1 else np.asarray(group.visits)
    if count == num_rows:
        return _Call(group.layer, None, visits, count)
    is_run = group.rows == tuple(range(first, first + count))
    return _Call(group.layer, slice(first, first + count) if is_run else np.asarray(group.rows), visits, count)


def _all_rows(batch: Batch) -> Rows | None:
    if batch.starts is None or batch.lengths is None:
        return None
    return Rows(batch.starts, batch.lengths, None if batch.pages is None else batch.pages[:, 0])


def _rows(batch: Batch, call: _Call, states: list[State] | None) -> Rows | None:
    if batch.starts is None or batch.lengths is None:
        return None
    pages, every = None, slice(None) if call.rows is None else call.rows
    if batch.pages is not None:
        visits = call.visits
        pages = batch.pages[every, visits] if isinstance(visits, int) else _pages_of(batch.pages, every, visits)
    return Rows(batch.starts[every], batch.lengths[every], pages, keep=batch.keep, states=states)


def _pages_of(pages: Ints, rows: Selection, visits: Ints) -> Ints:
    """Pages [B, N] of rows at different visits; a run and a list of visits would index the two axes apart."""
    found: Ints = pages[rows][np.arange(len(visits)), visits]
    return found


def _places(call: _Call) -> list[tuple[int, int]]:
    """The row and the visit of everyone who makes a call."""
    every = slice(0, call.num_rows) if call.rows is None else call.rows
    rows = range(every.start, every.stop) if isinstance(every, slice) else every.tolist()
    visits = repeat(call.visits, call.num_rows) if isinstance(call.visits, int) else call.visits.tolist()
    return list(zip(rows, visits, strict=True))


def pad(token_ids: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Token ids as [B, S] int64 padded on the right with 0, and their lengths [B]."""
    lengths = np.asarray([len(row) for row in token_ids], dtype=np.int64)
    padded = np.zeros((len(token_ids), int(lengths.max())), dtype=np.int64)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = ids
    return padded, lengths
