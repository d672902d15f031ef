"""A backend made of parts: embed, each layer, head as plain callables.

Knows no runtime; the loaders bring the parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from models.artifact import Form, LanguageSpec, TensorSpec
from models.errors import BackendError
from models.lm.residual import Residual
from service.backends.arrays import Arrays
from service.backends.fused import FusedChains
from service.backends.kv import PAGE_SIZE, KVCache
from service.backends.protocol import Array, Carry, Graph, Ints, Rows, Selection

# Arrays of one runtime in, arrays of the same runtime out.
Part: TypeAlias = Callable[..., Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Parts:
    """The callables of one model, in the signatures of `models.layered`; `close` frees what they hold.

    fuse: makes one callable of a chain, from inputs to outputs.
    """

    embed: Part
    layers: tuple[Part, ...]
    head: Part
    close: Callable[[], None] = lambda: None
    fuse: Callable[[Sequence[int]], Part] | None = None

    @classmethod
    def of(
        cls, form: Form, part: Callable[[str], Part], fuse: Callable[[Sequence[str]], Part] | None = None
    ) -> "Parts":
        """The parts of an exported form, each opened by the name of its file.

        fuse: opens the files of a chain as one, where the runtime has a way; there is a file of the full chain.
        """
        if not form.has_parts:
            assert form.whole is not None
            return cls(unchanged, (), part(form.whole))
        opened = {name: part(name) for name in form.parts}
        embed, *layers, head = (opened[name] for name in form.parts)
        whole = part(form.whole) if form.whole else None
        if whole is None and fuse is None:
            return cls(embed, tuple(layers), head)
        fuse = fuse or (lambda names: in_turn([opened[name] for name in names]))
        return cls(embed, tuple(layers), head, fuse=partial(_fused, form, whole, fuse))


@dataclass(frozen=True, slots=True)
class Pass:
    """Carry of a language model: what changes with every visit, and what the whole pass shares."""

    hidden: Any  # [B, S, D], wider where the residual form asks for it
    shared: tuple[Any, ...]  # cos [B, S, K], sin [B, S, K], mask [B, 1, S, P + S]
    kept: tuple[Any, ...] = ()  # keys and values [B, G, S, K] of the last visit, if they were to be kept


class LanguageBackend:
    """A decoder-only language model whose visits keep their keys and values in pages of their own."""

    def __init__(
        self,
        parts: Parts,
        language: LanguageSpec,
        arrays: Arrays,
        num_pages: int = 0,
        page_size: int = PAGE_SIZE,
        residual: Residual | None = None,
    ) -> None:
        self._parts, self._language, self._arrays = parts, language, arrays
        self._residual = residual or Residual()
        self._cache = KVCache(language, num_pages, page_size, arrays)

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    @property
    def num_pages(self) -> int:
        return self._cache.num_pages

    @property
    def page_size(self) -> int:
        return self._cache.page_size

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        assert rows is not None
        num_columns = rows.starts.max() if rows.pages is None else self._cache.num_columns(rows.starts)
        columns = np.arange(num_columns, dtype=np.int64)  # [P]
        taken = (self._arrays.take_in(array) for array in (inputs["token_ids"], rows.starts, columns))
        hidden, *shared = self._parts.embed(*taken)
        return Pass(hidden, tuple(shared))

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        assert rows is not None
        past = self._past(carry, rows)
        hidden, keys, values = self._parts.layers[index](carry.hidden, *carry.shared, *past)
        if rows.pages is not None:
            self._cache.write(rows, keys, values)
        return Pass(hidden, carry.shared, (keys, values) if rows.keep else ())

    def visit(self, index: int, carry: Carry, mask: Array, past: tuple[Any, Any] | None) -> tuple[Carry, Any]:
        """One visit of one row with a mask and a past of the caller's: the carry, and past and new keys and values."""
        cos, sin, _ = carry.shared
        if past is None:
            past = self._nothing(1)
        hidden, *new = self._parts.layers[index](carry.hidden, cos, sin, self._arrays.take_in(mask), *past)
        keys, values = (self._arrays.join(both, axis=2) for both in zip(past, new, strict=True))
        return Pass(hidden, carry.shared), (keys, values)

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        assert tokens is not None
        picked = carry.hidden[np.arange(len(tokens))[:, None], tokens]  # [B, T, D]
        (logits,) = self._parts.head(picked)
        return {"logits": self._arrays.give_out(logits)}

    def select(self, carry: Carry, rows: Selection) -> Carry:
        shared, kept = (tuple(array[rows] for array in arrays) for arrays in (carry.shared, carry.kept))
        return Pass(carry.hidden[rows], shared, kept)

    def merge(self, carry: Carry, rows: Selection, part: Carry) -> Carry:
        carry.hidden[rows] = part.hidden
        return carry

    def join(self, carries: Sequence[Carry]) -> Carry:
        hidden = self._arrays.join([carry.hidden for carry in carries])
        shared = self._join_each([carry.shared for carry in carries])
        # The carry before any visit keeps nothing; nor does what is joined with it.
        kept = self._join_each([carry.kept for carry in carries]) if all(carry.kept for carry in carries) else ()
        return Pass(hidden, shared, kept)

    def stream(self, carry: Carry) -> Array:
        return self._arrays.give_out(self._residual.landed(carry.hidden))

    def num_bytes(self, carry: Carry) -> int:
        return sum(int(array.nbytes) for array in (carry.hidden, *carry.shared, *carry.kept))

    def close(self) -> None:
        self._parts.close()
        self._parts = closed_parts()

    def _join_each(self, groups: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return tuple(self._arrays.join(arrays) for arrays in zip(*groups, strict=True))

    def _past(self, carry: Carry, rows: Rows) -> tuple[Any, Any]:
        mask = carry.shared[2]
        if rows.pages is not None:
            return self._cache.read(rows, mask.shape[3] - mask.shape[2])
        if not rows.past:
            return self._nothing(len(rows.starts))
        read = [[array[:, :, : past.length] for array in past.carry.kept] for past in rows.past]
        keys, values = (self._arrays.join(parts, axis=2) for parts in zip(*read, strict=True))
        return keys, values

    def _nothing(self, num_rows: int) -> tuple[Any, Any]:
        nothing = self._arrays.zeros((num_rows, self._language.num_kv_heads, 0, self._language.head_size))
        return nothing, nothing


class TensorBackend:
    """A model of tensors: a stack of layers without positions or cache, or a whole graph with no layers at all."""

    num_pages = 0
    page_size = PAGE_SIZE

    def __init__(
        self,
        parts: Parts,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        arrays: Arrays,
        max_fused: int = 0,
    ) -> None:
        self._parts, self._arrays = parts, arrays
        self._inputs, self._outputs = [spec.name for spec in inputs], [spec.name for spec in outputs]
        self.fused = FusedChains(self._graph, max_fused) if max_fused else None

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        return tuple(self._parts.embed(*self._taken_in(inputs)))

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        return tuple(self._parts.layers[index](*carry))

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        return self._given_out(self._parts.head(*carry))

    def select(self, carry: Carry, rows: Selection) -> Carry:
        return tuple(array[rows] for array in carry)

    def merge(self, carry: Carry, rows: Selection, part: Carry) -> Carry:
        for array, update in zip(carry, part, strict=True):
            array[rows] = update
        return carry

    def join(self, carries: Sequence[Carry]) -> Carry:
        return tuple(self._arrays.join(arrays) for arrays in zip(*carries, strict=True))

    def stream(self, carry: Carry) -> Array:
        return self._arrays.give_out(carry[0])

    def num_bytes(self, carry: Carry) -> int:
        return sum(int(array.nbytes) for array in carry)

    def close(self) -> None:
        self._parts.close()
        if self.fused:
            self.fused.clear()
        self._parts = closed_parts()

    def _graph(self, layers: tuple[int, ...]) -> Graph:
        assert self._parts.fuse
        part = self._parts.fuse(layers)
        return lambda inputs, *states: self._given_out(part(*self._taken_in(inputs)))

    def _taken_in(self, inputs: Mapping[str, Array]) -> list[Any]:
        return [self._arrays.take_in(inputs[name]) for name in self._inputs]

    def _given_out(self, outputs: Sequence[Any]) -> dict[str, Array]:
        return {name: self._arrays.give_out(array) for name, array in zip(self._outputs, outputs, strict=True)}


def _fused(form: Form, whole: Part | None, fuse: Callable[[Sequence[str]], Part], layers: Sequence[int]) -> Part:
    """The part that a chain becomes."""
    embed, *every, head = form.parts
    if whole and list(layers) == list(range(len(every))):
        return whole
    return fuse([embed, *(every[layer] for layer in layers), head])


def in_turn(parts: Sequence[Part]) -> Part:
    """Parts one after the other, each taking what the one before gives out."""

    def call(*arrays: Any) -> Sequence[Any]:
        for part in parts:
            arrays = tuple(part(*arrays))
        return arrays

    return call


def unchanged(*arrays: Any) -> Sequence[Any]:
    """The embed part of a whole graph: its inputs are its carry."""
    return arrays


def closed_parts() -> Parts:
    """Parts of a backend that gave its memory back: whoever still holds the backend holds no weights."""
    return Parts(_refuse, (), _refuse)


def _refuse(*arrays: Any) -> Sequence[Any]:
    raise BackendError("the model was unloaded")
