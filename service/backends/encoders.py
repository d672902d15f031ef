"""A text encoder made of parts. Knows no runtime; the loaders bring the parts."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.artifact import EncoderSpec, TensorSpec
from service.backends.arrays import Arrays
from service.backends.kv import PAGE_SIZE
from service.backends.parts import Parts, closed_parts
from service.backends.protocol import Array, Carry, Ints, Rows, Selection


class EncoderBackend:
    """Takes `token_ids` [B, S], `lengths` [B] and, where pairs are told apart, `token_types` [B, S], all int64.

    Its carry is the stream [B, S, D] with the lengths [B]; nothing is cached between passes.
    """

    num_pages = 0
    page_size = PAGE_SIZE

    def __init__(self, parts: Parts, encoder: EncoderSpec, outputs: Sequence[TensorSpec], arrays: Arrays) -> None:
        self._parts, self._arrays = parts, arrays
        self._embedded = ("token_ids", "token_types") if encoder.has_token_types else ("token_ids",)
        self._is_pooled = encoder.is_pooled
        (self._output,) = (spec.name for spec in outputs)

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        (hidden,) = self._parts.embed(*(self._arrays.take_in(inputs[name]) for name in self._embedded))
        return hidden, self._arrays.take_in(inputs["lengths"])

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        (hidden,) = self._parts.layers[index](*carry)
        return hidden, carry[1]

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        """One output a text; else one for each of its tokens [B, S, ...], or for `tokens` [B, T] of them."""
        hidden, lengths = carry
        if self._is_pooled:
            (outputs,) = self._parts.head(hidden, lengths)
        else:
            picked = hidden if tokens is None else hidden[np.arange(len(tokens))[:, None], tokens]
            (outputs,) = self._parts.head(picked)
        return {self._output: self._arrays.give_out(outputs)}

    def select(self, carry: Carry, rows: Selection) -> Carry:
        return carry[0][rows], carry[1][rows]

    def merge(self, carry: Carry, rows: Selection, part: Carry) -> Carry:
        carry[0][rows] = part[0]
        return carry

    def join(self, carries: Sequence[Carry]) -> Carry:
        hidden, lengths = zip(*carries, strict=True)
        return self._arrays.join(hidden), self._arrays.join(lengths)

    def stream(self, carry: Carry) -> Array:
        return self._arrays.give_out(carry[0])

    def num_bytes(self, carry: Carry) -> int:
        return sum(int(array.nbytes) for array in carry)

    def close(self) -> None:
        self._parts.close()
        self._parts = closed_parts()
