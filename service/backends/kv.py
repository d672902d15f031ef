"""Keys and values of every page: a few tokens of one visit. Who holds which page is decided elsewhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import LanguageSpec
from service.backends.arrays import Arrays
from service.backends.protocol import Ints, Rows

# Tokens of a page where nobody says otherwise.
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class _Span:
    """Where the tokens of a pass lie, whatever the visit.

    Of all but padding: row, place among the new ones, column, place in its page, and which come first in their page.
    Then which columns [B, N] hold a token read before, and how many do so in every row.
    """

    starts: Ints
    row: Ints
    token: Ints
    column: Ints
    place: Ints
    first: NDArray[np.bool_] | None
    holds: NDArray[np.bool_]
    num_full: int


class KVCache:
    """Two arrays [(num_pages + 1) * G * page_size, K], used the same way in numpy and torch.

    One page more than there are: nobody writes it, and it stands for every page a row does not have.
    """

    def __init__(self, language: LanguageSpec, num_pages: int, page_size: int, arrays: Arrays) -> None:
        self.num_pages, self.page_size, self._arrays = num_pages, page_size, arrays
        self._heads = np.arange(language.num_kv_heads)
        self._head_size = language.head_size
        shape = ((num_pages + 1) * language.num_kv_heads * page_size, language.head_size)
        self._kept = tuple(arrays.zeros(shape) for _ in range(2))
        self._paged = tuple(array.reshape(-1, page_size, language.head_size) for array in self._kept)
        for array in self._kept:
            array[-language.num_kv_heads * page_size :] = 0.0
        # What was read last, overwritten by the next read: fresh memory of this size costs as much as the copy.
        self._read = [arrays.zeros((0, page_size, language.head_size)) for _ in self._kept]
        self._span: _Span | None = None

    def num_columns(self, starts: Ints) -> int:
        """Columns P that a pass sees of tokens before `starts` [B]: whole pages."""
        return -(-int(starts.max()) // self.page_size) * self.page_size

    def read(self, rows: Rows, num_columns: int) -> tuple[Any, Any]:
        """Keys and values [B, G, P, K] of the first P columns of `rows`; good until the next read.

        What lies behind the tokens already read is finite and means nothing.
        """
        assert rows.pages is not None
        span = self._where(rows)
        count = num_columns // self.page_size
        pages = rows.pages[:, :count]  # [B, N]
        if count > span.num_full:
            pages = np.where(span.holds[:, :count], pages, self.num_pages)
        num_heads = len(self._heads)
        places = (pages[:, None] * num_heads + self._heads[:, None]).reshape(-1)  # [B, G, N] in a row
        if places.size > len(self._read[0]):
            self._read = [self._arrays.zeros((places.size, self.page_size, self._head_size)) for _ in self._kept]
        shape = (len(pages), num_heads, num_columns, self._head_size)
        keys, values = (into[: places.size] for into in self._read)
        self._arrays.take(self._paged[0], places, keys)
        self._arrays.take(self._paged[1], places, values)
        return keys.reshape(shape), values.reshape(shape)

    def write(self, rows: Rows, keys: Any, values: Any) -> None:
        """Store the new tokens' keys and values [B, G, S, K]; padding and tokens whose page is -1 are left out.

        A page is emptied when its first token comes: masked columns get weight zero, and zero times NaN is NaN, so
        that what one sequence left would reach the next.
        """
        assert rows.pages is not None
        span = self._where(rows)
        row, token, place, first = span.row, span.token, span.place, span.first
        page = rows.pages[row, span.column]
        if (page < 0).any():
            stored = page >= 0
            row, token, place, page = row[stored], token[stored], place[stored], page[stored]
            first = None if first is None else first[stored]
        if first is not None:
            self._empty(page[first])
        places = ((page[:, None] * len(self._heads) + self._heads) * self.page_size + place[:, None]).reshape(-1)
        for array, new in zip(self._kept, (keys, values), strict=True):
            # One token of every row needs no picking, which would copy.
            picked = new if new.shape[2] == 1 and len(row) == len(new) else new[row, :, token]
            array[places] = picked.reshape(-1, self._head_size)

    def _where(self, rows: Rows) -> _Span:
        """Where the tokens of `rows` lie; found once for all visits that the same rows make."""
        if self._span is None or self._span.starts is not rows.starts:
            self._span = self._find(rows)
        return self._span

    def _find(self, rows: Rows) -> _Span:
        assert rows.pages is not None
        row, token = np.nonzero(np.arange(rows.lengths.max()) < rows.lengths[:, None])
        column, place = np.divmod(rows.starts[row] + token, self.page_size)
        first = place == 0
        holds = np.arange(rows.pages.shape[1]) * self.page_size < rows.starts[:, None]
        return _Span(
            starts=rows.starts,
            row=row,
            token=token,
            column=column,
            place=place,
            first=first if first.any() else None,
            holds=holds,
            num_full=int(holds.all(axis=0).sum()),
        )

    def _empty(self, pages: Ints) -> None:
        size = len(self._heads) * self.page_size
        places = (pages[:, None] * size + np.arange(size)).reshape(-1)
        for array in self._kept:
            array[places] = 0.0


def page_bytes(language: LanguageSpec, page_size: int, item_bytes: int = 4) -> int:
    """Memory of one page: keys and values, numbers of `item_bytes` each."""
    return 2 * item_bytes * language.num_kv_heads * page_size * language.head_size
