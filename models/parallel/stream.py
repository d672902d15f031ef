"""The residual stream of a pass on one rank: what has landed, and what modules added that is still on its way.

Every row knows its own pieces, so rows that took different chains lie in one stream. A piece is read when it lands and
never before: rows are picked, put back and joined without touching what an all-reduce writes to. Knows no layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.parallel.group import Group, Handle

Module: TypeAlias = Literal["attention", "mlp"]
# For each row of a stream its row in a piece, -1 where it has none.
Places: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What one module of one visit adds [B', S, D] to the rows that made it, once `handle` was waited for.

    norm: what is done to it before it is added.
    """

    tensor: Tensor
    handle: Handle
    norm: Callable[[Tensor], Tensor]
    module: Module
    layer: int

    def onto(self, stream: Tensor, landed: Tensor) -> Tensor:
        """Rows [R, S, D] of a stream with this output's rows for them."""
        return stream + self.norm(landed)


@dataclass(frozen=True, slots=True, eq=False)
class Equal(Output):
    """The streams of all ranks made equal (desync): what each adds, and the mean of what they were."""

    def onto(self, stream: Tensor, landed: Tensor) -> Tensor:
        return landed


@dataclass(frozen=True, slots=True, eq=False)
class Own(Output):
    """What this rank alone adds to its stream (desync); apart [B']: visits of each row since the streams were equal."""

    apart: Places


@dataclass(frozen=True, slots=True)
class Piece:
    """An output on its way to some rows of a stream; places None are all rows of both, in order."""

    output: Output
    places: Places | None = None


# Which pieces a module has to read.
Wanted: TypeAlias = Callable[[Output], bool]


class Stream:
    """Rows [B, S, D] and the pieces that are on their way to them, in the order in which they are to be added."""

    def __init__(self, landed: Tensor, pieces: Sequence[Piece] = ()) -> None:
        self.landed, self.pieces = landed, tuple(pieces)

    def land(self, wanted: Wanted = lambda output: True) -> "Stream":
        """The stream with some pieces waited for and added; all of them unless said otherwise."""
        stream, left = self.landed, []
        for piece in self.pieces:
            if wanted(piece.output):
                stream = _added(stream, piece)
            else:
                left.append(piece)
        return Stream(stream, left)

    def launched(self, output: Output, places: Places | None = None) -> "Stream":
        """The stream with one more piece on its way; to every row, unless `places` say to which."""
        return Stream(self.landed, (*self.pieces, Piece(output, places)))

    def whole(self, group: Group) -> Tensor:
        """The stream [B, S, D] that all ranks agree on: all of it landed, and rows that are not equal made so now."""
        stream = self.land(lambda output: not isinstance(output, Own))
        if not stream.pieces:
            return stream.landed
        rows = np.flatnonzero(stream.apart())
        together = Stream(stream.landed / group.size, stream.pieces).land().landed[rows]
        group.all_reduce(together).wait()
        whole = stream.landed.clone()
        whole[rows] = together
        return whole

    def apart(self) -> Places:
        """Visits of each row since all ranks' streams were equal [B]."""
        counts = np.zeros(len(self.landed), np.int64)
        for piece in self.pieces:
            if isinstance(piece.output, Own):
                places = _places(piece, len(counts))
                counts[places >= 0] = piece.output.apart[places[places >= 0]]
        return counts

    def own(self) -> "Stream":
        """The stream in memory of its own, where it still shares that of the one it was made from."""
        return Stream(self.landed.clone(), self.pieces)

    def __getitem__(self, rows: Any) -> "Stream":
        """Some rows; or [rows [B, 1], tokens [B, T]], all rows in order, for which everything lands that can."""
        if isinstance(rows, tuple):
            return self._tokens(rows[1])
        picked = np.arange(len(self.landed))[rows]
        pieces = (_picked(piece, picked, len(self.landed)) for piece in self.pieces)
        return Stream(self.landed[rows], [piece for piece in pieces if piece])

    def __setitem__(self, rows: Any, part: "Stream") -> None:
        """Replace some rows, and the pieces on their way to them."""
        count = len(self.landed)
        replaced = np.arange(count)[rows]
        self.landed[rows] = part.landed
        kept = np.setdiff1d(np.arange(count), replaced)
        left = (_spread(piece, kept, kept, count) for piece in self.pieces)
        came = (_spread(piece, np.arange(len(replaced)), replaced, count) for piece in part.pieces)
        self.pieces = tuple(piece for piece in (*left, *came) if piece)

    def _tokens(self, tokens: Places) -> "Stream":
        stream = self.land(lambda output: not isinstance(output, Own))
        pieces = []
        for piece in stream.pieces:
            places = _places(piece, len(tokens))
            rows = np.flatnonzero(places >= 0)
            picked = piece.output.tensor[places[rows][:, None], tokens[rows]]
            assert isinstance(piece.output, Own)
            output = replace(piece.output, tensor=picked, apart=piece.output.apart[places[rows]])
            pieces.append(Piece(output, inverse(rows, len(tokens))))
        return Stream(stream.landed[np.arange(len(tokens))[:, None], tokens], pieces)

    @property
    def nbytes(self) -> int:
        """Memory of the rows and of what is on its way to them."""
        return int(self.landed.nbytes) + sum(_num_rows(piece) * piece.output.tensor[:1].nbytes for piece in self.pieces)


def join(streams: Sequence[Stream]) -> Stream:
    """The rows of several streams, with what is on its way to each; an output of several is still one."""
    count = sum(len(stream.landed) for stream in streams)
    places: dict[Output, Places] = {}
    first = 0
    for stream in streams:
        rows = np.arange(first, first + len(stream.landed))
        for piece in stream.pieces:
            into = places.setdefault(piece.output, np.full(count, -1))
            into[rows] = _places(piece, len(rows))
        first += len(rows)
    return Stream(torch.cat([stream.landed for stream in streams]), [Piece(*one) for one in places.items()])


def _added(stream: Tensor, piece: Piece) -> Tensor:
    """Wait, and add the piece to the rows that it is for."""
    output, places = piece.output, piece.places
    output.handle.wait()
    if places is None:
        return output.onto(stream, output.tensor)
    rows = np.flatnonzero(places >= 0)
    landed = output.tensor[places[rows]]
    if len(rows) == len(stream):
        return output.onto(stream, landed)
    added = stream.clone()
    added[rows] = output.onto(stream[rows], landed)
    return added


def _picked(piece: Piece, rows: Places, count: int) -> Piece | None:
    """The piece of a stream of `count` rows for some of them."""
    places = _places(piece, count)[rows]
    return replace(piece, places=places) if (places >= 0).any() else None


def _spread(piece: Piece, rows: Places, targets: Places, count: int) -> Piece | None:
    """The piece's `rows`, for the rows `targets` of a stream of `count`."""
    places = np.full(count, -1)
    places[targets] = _places(piece, int(rows.max(initial=-1)) + 1)[rows]
    return replace(piece, places=places) if (places >= 0).any() else None


def _places(piece: Piece, count: int) -> Places:
    return np.arange(count) if piece.places is None else piece.places


def inverse(rows: Places, count: int) -> Places:
    """Of `count` rows the place of each in `rows`, -1 for those that are not there."""
    places = np.full(count, -1)
    places[rows] = np.arange(len(rows))
    return places


def _num_rows(piece: Piece) -> int:
    return len(piece.output.tensor) if piece.places is None else int((piece.places >= 0).sum())
