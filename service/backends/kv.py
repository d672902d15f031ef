"""Keys and values of every page: a few tokens of one visit. Who holds which page is decided elsewhere."""

from typing import Any

import numpy as np

from models.artifact import LanguageSpec
from service.backends.arrays import Arrays
from service.backends.protocol import Ints, Rows

# Tokens of a page where nobody says otherwise.
PAGE_SIZE = 16


class KVCache:
    """Two arrays [num_pages + 1, G, page_size, K] float32, used the same way in numpy and torch.

    One page more than there are: nobody writes it, and it stands for every page a row does not have.
    """

    def __init__(self, language: LanguageSpec, num_pages: int, page_size: int, arrays: Arrays) -> None:
        self.num_pages, self.page_size, self._arrays = num_pages, page_size, arrays
        self._num_heads = language.num_kv_heads
        shape = (num_pages + 1, language.num_kv_heads, page_size, language.head_size)
        self._keys, self._values = arrays.zeros(shape), arrays.zeros(shape)
        self._keys[num_pages] = 0.0
        self._values[num_pages] = 0.0
        # What was read last, overwritten by the next read: fresh memory of this size costs as much as the copy.
        self._read = [arrays.zeros((0, page_size, language.head_size)) for _ in range(2)]

    def num_columns(self, starts: Ints) -> int:
        """Columns P that a pass sees of tokens before `starts` [B]: whole pages."""
        return -(-int(starts.max()) // self.page_size) * self.page_size

    def read(self, rows: Rows, num_columns: int) -> tuple[Any, Any]:
        """Keys and values [B, G, P, K] of the first P columns of `rows`; good until the next read.

        What lies behind the tokens already read is finite and means nothing.
        """
        assert rows.pages is not None
        count = num_columns // self.page_size
        has_tokens = np.arange(count) * self.page_size < rows.starts[:, None]
        pages = np.where(has_tokens, rows.pages[:, :count], self.num_pages)  # [B, N]
        places = pages[:, None] * self._num_heads + np.arange(self._num_heads)[:, None]  # [B, G, N]
        keys, values = (self._take(which, array, places) for which, array in enumerate((self._keys, self._values)))
        return keys, values

    def write(self, rows: Rows, keys: Any, values: Any) -> None:
        """Store the new tokens' keys and values [B, G, S, K]; padding and tokens whose page is -1 are left out.

        A page is emptied when its first token comes: masked columns get weight zero, and zero times NaN is NaN, so
        that what one sequence left would reach the next.
        """
        assert rows.pages is not None
        row, token = np.nonzero(np.arange(keys.shape[2]) < rows.lengths[:, None])
        column, place = np.divmod(rows.starts[row] + token, self.page_size)
        page = rows.pages[row, column]
        if (page < 0).any():
            row, token, page, place = (array[page >= 0] for array in (row, token, page, place))
        fresh = page[place == 0]
        for array, new in ((self._keys, keys), (self._values, values)):
            if fresh.size:
                array[fresh] = 0.0
            array[page, :, place] = new[row, :, token]

    def _take(self, which: int, array: Any, places: Ints) -> Any:
        flat = array.reshape(-1, *array.shape[2:])
        if places.size > len(self._read[which]):
            self._read[which] = self._arrays.zeros((places.size, *flat.shape[1:]))
        taken = self._read[which][: places.size]
        self._arrays.take(flat, places.reshape(-1), taken)
        return taken.reshape(*places.shape[:2], -1, flat.shape[2])


def page_bytes(language: LanguageSpec, page_size: int) -> int:
    """Memory of one page: keys and values, float32."""
    return 2 * 4 * language.num_kv_heads * page_size * language.head_size
