"""Keys and values of every KV slot. A slot is one visit of one sequence; who owns which is decided elsewhere."""

from typing import Any

import numpy as np

from models.artifact import LanguageSpec
from service.backends.arrays import Arrays
from service.backends.protocol import Ints, Rows


class KVCache:
    """Two arrays [num_slots, G, max_length, K] float32, indexed the same way in numpy and torch."""

    def __init__(self, language: LanguageSpec, num_slots: int, arrays: Arrays) -> None:
        shape = (num_slots, language.num_kv_heads, language.max_length, language.head_size)
        self.num_slots = num_slots
        self._keys = arrays.zeros(shape)
        self._values = arrays.zeros(shape)

    def read(self, slots: Ints, length: int) -> tuple[Any, Any]:
        """Keys and values [B, G, length, K] of the first `length` columns of `slots` [B]."""
        return self._keys[slots, :, :length], self._values[slots, :, :length]

    def clear(self, slots: Ints) -> None:
        """Empty slots that get a new owner.

        Masked columns get weight zero, and zero times NaN is NaN: what one sequence left must not reach the next.
        """
        if slots.size:
            self._keys[slots] = 0.0
            self._values[slots] = 0.0

    def write(self, rows: Rows, keys: Any, values: Any) -> None:
        """Store the new tokens' keys and values [B, G, S, K] behind what each slot holds; padding is left out."""
        assert rows.slots is not None
        row, token = np.nonzero(np.arange(keys.shape[2]) < rows.lengths[:, None])
        slot, column = rows.slots[row], rows.starts[row] + token
        self._keys[slot, :, column] = keys[row, :, token]
        self._values[slot, :, column] = values[row, :, token]


def slot_bytes(language: LanguageSpec) -> int:
    """Memory of one KV slot: keys and values, float32."""
    return 2 * 4 * language.num_kv_heads * language.max_length * language.head_size
