"""A recurrent model made of parts. Knows no runtime; the loaders bring the parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.artifact import SequenceSpec, TensorSpec
from models.datatype import DTYPES
from service.backends.arrays import Arrays
from service.backends.fused import FusedChains
from service.backends.kv import PAGE_SIZE
from service.backends.parts import Parts, closed_parts
from service.backends.protocol import Array, Carry, Graph, Ints, Rows, Selection, State


@dataclass(frozen=True, slots=True)
class _Left:
    """What a visit left of one row: its place in the arrays of a batch, or in arrays of its own."""

    arrays: tuple[Any, ...]  # [B, ...] each
    row: int


class SequenceBackend:
    """Takes steps [B, T, ...] from the states it is given; the carry is the stream [B, T, D].

    Without states it begins, and sequences of any length are walked in pieces within each call.
    """

    num_pages = 0
    page_size = PAGE_SIZE

    def __init__(
        self,
        parts: Parts,
        sequence: SequenceSpec,
        outputs: Sequence[TensorSpec],
        arrays: Arrays,
        max_fused: int = 0,
    ) -> None:
        self._parts, self._sequence, self._arrays = parts, sequence, arrays
        self.fused = FusedChains(self._graph, max_fused) if max_fused else None
        (self._output,) = (spec.name for spec in outputs)

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        (steps,) = (self._arrays.take_in(array) for array in inputs.values())
        return self._piecewise(self._parts.embed, steps)

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        layer = self._parts.layers[index]
        if rows is None or rows.states is None:
            return self._walked(layer, carry)
        hidden, *after = layer(carry, *self._gathered(rows.states))
        rows.states[:] = self._left(tuple(after), len(rows.states), rows.keep)
        return hidden

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        return {self._output: self._arrays.give_out(self._piecewise(self._parts.head, carry))}

    def select(self, carry: Carry, rows: Selection) -> Carry:
        return carry[rows]

    def merge(self, carry: Carry, rows: Selection, part: Carry) -> Carry:
        merged = self._arrays.join([carry])  # a state may be a view of the stream that it was made from
        merged[rows] = part
        return merged

    def join(self, carries: Sequence[Carry]) -> Carry:
        return self._arrays.join(carries)

    def stream(self, carry: Carry) -> Array:
        return self._arrays.give_out(carry)

    def num_bytes(self, carry: Carry) -> int:
        return int(carry.nbytes)

    def close(self) -> None:
        self._parts.close()
        if self.fused:
            self.fused.clear()
        self._parts = closed_parts()

    def _graph(self, layers: tuple[int, ...]) -> Graph:
        assert self._parts.fuse
        part, count = self._parts.fuse(layers), len(self._sequence.state)

        def walked(steps: Any, states: Sequence[list[State]], keep: bool) -> Any:
            """One pass: steps [B, T, ...], states [B][visits], which it replaces."""
            visits = range(len(layers))
            before = [array for visit in visits for array in self._gathered([row[visit] for row in states])]
            answers, *after = part(steps, *before)
            for visit in visits:
                arrays = tuple(after[visit * count : (visit + 1) * count])
                for row, left in zip(states, self._left(arrays, len(states), keep), strict=True):
                    row[visit] = left
            return answers

        def graph(
            inputs: Mapping[str, Array], states: Sequence[list[State]] | None = None, keep: bool = False
        ) -> dict[str, Array]:
            (steps,) = (self._arrays.take_in(array) for array in inputs.values())
            states = states or [[None] * len(layers) for _ in range(len(steps))]
            made = [walked(piece, states, keep) for piece in self._pieces(steps)]
            return {self._output: self._arrays.give_out(made[0] if len(made) == 1 else self._arrays.join(made, axis=1))}

        return graph

    def _walked(self, layer: Callable[..., Sequence[Any]], hidden: Any) -> Any:
        """One visit from the first step on, piece by piece."""
        state, made = self._zeros(len(hidden)), []
        for piece in self._pieces(hidden):
            one, *after = layer(piece, *state)
            state = tuple(after)
            made.append(one)
        return made[0] if len(made) == 1 else self._arrays.join(made, axis=1)

    def _piecewise(self, part: Callable[..., Sequence[Any]], array: Any) -> Any:
        """A part that looks at every step for itself."""
        made = [part(piece)[0] for piece in self._pieces(array)]
        return made[0] if len(made) == 1 else self._arrays.join(made, axis=1)

    def _pieces(self, array: Any) -> list[Any]:
        size = self._sequence.max_chunk
        return [array[:, start : start + size] for start in range(0, array.shape[1], size)]

    def _gathered(self, states: Sequence[State]) -> tuple[Any, ...]:
        if all(state is None for state in states):
            return self._zeros(len(states))
        if (arrays := _of_one_batch(states)) is not None:
            return arrays
        nothing = self._zeros(1)
        each = [nothing if state is None else _row(state.arrays, state.row) for state in states]
        return tuple(self._arrays.join(arrays) for arrays in zip(*each, strict=True))

    def _left(self, arrays: tuple[Any, ...], num_rows: int, keep: bool) -> list[_Left]:
        left = self._own if keep else _Left
        return [left(arrays, row) for row in range(num_rows)]

    def _own(self, arrays: tuple[Any, ...], row: int) -> _Left:
        return _Left(tuple(self._arrays.join([array]) for array in _row(arrays, row)), 0)

    def _zeros(self, num_rows: int) -> tuple[Any, ...]:
        return tuple(
            self._arrays.take_in(np.zeros((num_rows, *spec.shape[1:]), DTYPES[spec.datatype]))
            for spec in self._sequence.state
        )


def _of_one_batch(states: Sequence[State]) -> tuple[Any, ...] | None:
    """The arrays of a batch whose rows the states are, all of them and in order."""
    arrays: tuple[Any, ...] | None = states[0] and states[0].arrays
    if arrays is None or len(states) != len(arrays[0]):
        return None
    is_whole = all(state and state.arrays is arrays and state.row == row for row, state in enumerate(states))
    return arrays if is_whole else None


def _row(arrays: tuple[Any, ...], row: int) -> tuple[Any, ...]:
    return tuple(array[row : row + 1] for array in arrays)


def state_bytes(sequence: SequenceSpec) -> int:
    """Memory of what one visit is left in, at most."""
    return sum(
        int(np.prod(spec.shape[1:], dtype=np.int64)) * np.dtype(DTYPES[spec.datatype]).itemsize
        for spec in sequence.state
    )
