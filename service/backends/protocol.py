"""What every backend can do: embed, one visit of one layer, head. Knows no chain, no queue and no sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from service.backends.fused import FusedChains

Ints: TypeAlias = NDArray[np.int64]
Array: TypeAlias = NDArray[Any]
# What one visit hands the next. Only the backend that made it looks inside.
Carry: TypeAlias = Any
# What one visit of a recurrent model hands from one pass to the next; None before the first step. As a carry.
State: TypeAlias = Any


class Graph(Protocol):
    """A model along one chain: outputs by name of inputs by name.

    states, of a recurrent model: of each row and each visit, which it replaces, as `Rows` has it.
    """

    def __call__(
        self, inputs: Mapping[str, Array], states: Sequence[list[State]] | None = None, keep: bool = False
    ) -> dict[str, Array]: ...


# What torch models compute in; "auto" is what suits the device.
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
# Rows of a carry: their places, or a run of them, which some backends need not copy.
Selection: TypeAlias = Ints | slice


@dataclass(frozen=True, slots=True)
class Past:
    """Keys and values of earlier tokens, in the carry that the same visit of these tokens kept them in [B rows].

    length: tokens of each row; what the carry holds beyond them is padding.
    """

    carry: Carry
    length: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the new tokens of a pass lie in their sequences, and where one visit finds and leaves keys and values.

    starts [B]: tokens of each sequence already read. lengths [B]: new tokens that are no padding.
    pages [B, N]: the pages of this visit of each row, from its first token on; -1 where a row has none, or where others
    read the page and what the pass finds out is not to be stored. Without pages: `past`, in the order of the tokens,
    holds all earlier ones, as many for each row; and with `keep` the carry keeps keys and values of the new ones.
    states [B], of a recurrent model: what this visit of each row was left in, which the visit replaces in the list;
    with `keep` by states in memory of their own, that hold nothing of their neighbours. Without them every row begins.
    """

    starts: Ints
    lengths: Ints
    pages: Ints | None = None
    past: Sequence[Past] = ()
    keep: bool = False
    states: list[State] | None = None


class Backend(Protocol):
    """One loaded model on one runtime. Not thread-safe: a single thread owns it.

    A network that is no stack has no layers: `embed` takes its inputs in, `head` runs the whole graph.
    """

    @property
    def num_layers(self) -> int: ...

    @property
    def num_pages(self) -> int:
        """Pages of keys and values there is memory for; 0 where nothing is cached."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens of one page."""
        ...

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        """Start a pass. Language models take `token_ids` [B, S] int64, padded on the right, and need `rows`.

        Every visit of the pass finds its earlier tokens in pages if `rows` has any, whichever they are.
        """
        ...

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        """One visit of layer `index` by every row of `carry`; it sees the tokens in the rows' pages or past, too."""
        ...

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        """Outputs by name; of a language model `logits` [B, T, V] float32 at the new tokens `tokens` [B, T]."""
        ...

    def select(self, carry: Carry, rows: Selection) -> Carry:
        """The given rows of a carry, as a carry that may share its memory: merge it or forget it before changes."""
        ...

    def merge(self, carry: Carry, rows: Selection, part: Carry) -> Carry:
        """The carry with the given rows replaced by those of `part`; may change `carry` in place."""
        ...

    def join(self, carries: Sequence[Carry]) -> Carry:
        """The rows of several carries of one shape, as one carry."""
        ...

    def stream(self, carry: Carry) -> Array:
        """The residual stream of a carry [B, ..., D], with everything that was added to it so far."""
        ...

    def num_bytes(self, carry: Carry) -> int:
        """Memory a carry holds."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@runtime_checkable
class Fusing(Protocol):
    """What a backend has beside the rest if chains can become one graph each: quicker, where layers are small.

    A call for each layer is what a choice of depth costs; a chain that is often chosen need not pay it.
    """

    @property
    def fused(self) -> FusedChains[Graph] | None:
        """Those graphs, each within rounding what `embed`, every `layer` and `head` give; None where none is made."""
        ...


@runtime_checkable
class Renewable(Protocol):
    """What a backend has beside the rest if all that it keeps, carries and pages, can be lost and it begins anew.

    Its calls raise GroupLostError from the loss on until `renew`, UnavailableError for carries of before.
    """

    @property
    def is_lost(self) -> bool:
        """Whether everything that was kept is gone."""
        ...

    def check(self) -> None:
        """Raise GroupLostError while nothing can be run; from any thread."""
        ...

    def renew(self) -> None:
        """Begin anew. Only for who has forgotten every page. Raises GroupLostError while that is too early."""
        ...
