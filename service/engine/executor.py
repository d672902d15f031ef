"""Runs one batch, each row along its own chain: a loop over the plan's groups. Decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.chain import Chain
from service.backends.protocol import Array, Backend, Carry, Ints, Rows
from service.engine.plan import Group, plan


class LayerCounter(Protocol):
    """Counts the work of layers: one call is one `Backend.layer`."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        """`rows` samples made a visit together, with `tokens` real tokens among them."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one pass.

    inputs: arrays with B rows each. chains [B]. For language models also starts [B], lengths [B], the tokens [B, T]
    whose logits are wanted, and the KV slot of every visit, slots [B, longest chain], or None to cache nothing.
    """

    inputs: Mapping[str, Array]
    chains: tuple[Chain, ...]
    starts: Ints | None = None
    lengths: Ints | None = None
    tokens: Ints | None = None
    slots: Ints | None = None


class Executor:
    """One backend and the loop that walks a batch through it."""

    def __init__(self, backend: Backend, counter: LayerCounter) -> None:
        self._backend, self._counter = backend, counter

    def run(self, batch: Batch) -> dict[str, Array]:
        """Outputs by name, one row per chain, in the order of the batch."""
        return self._backend.head(self._walk(batch), batch.tokens)

    def stream(self, batch: Batch) -> Array:
        """The residual stream after the last visit [B, ..., D], in the order of the batch; the head is not run."""
        return self._backend.stream(self._walk(batch))

    def _walk(self, batch: Batch) -> Carry:
        carry = self._backend.embed(batch.inputs, _rows(batch))
        for group in plan(batch.chains) if self._backend.num_layers else ():
            carry = self._visit(group, carry, batch)
        return carry

    def _visit(self, group: Group, carry: Carry, batch: Batch) -> Carry:
        rows = _rows(batch, group)
        tokens = len(group.rows) if rows is None else int(rows.lengths.sum())
        self._counter.count_layer_call(group.layer, len(group.rows), tokens)
        if len(group.rows) == len(batch.chains):
            return self._backend.layer(group.layer, carry, rows)
        part = self._backend.select(carry, group.rows)
        return self._backend.merge(carry, group.rows, self._backend.layer(group.layer, part, rows))


def _rows(batch: Batch, group: Group | None = None) -> Rows | None:
    if batch.starts is None or batch.lengths is None:
        return None
    if group is None:
        return Rows(batch.starts, batch.lengths)
    chosen = np.asarray(group.rows)
    slots = None if batch.slots is None else batch.slots[chosen, np.asarray(group.visits)]
    return Rows(batch.starts[chosen], batch.lengths[chosen], slots)


def pad(token_ids: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Token ids as [B, S] int64 padded on the right with 0, and their lengths [B]."""
    lengths = np.asarray([len(row) for row in token_ids], dtype=np.int64)
    padded = np.zeros((len(token_ids), int(lengths.max())), dtype=np.int64)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = ids
    return padded, lengths
