"""The KV cache of the code released with CoLa's successor, flaw included. For reproduction only; nothing serves it.

There is one cache per layer, whatever visit it is: a second visit appends its keys and values behind the first one's.
In prefill attention is causal from the top left, so the second visit sees only the first one's keys; in decode a visit
sees all that either left. Chains that visit no layer twice are exact. (transformers 4.52 with sdpa; read and measured.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.chain import Chain
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array, Carry, Rows


class ReferenceSequence:
    """One sequence along one chain. Lives on the thread that owns the backend."""

    def __init__(self, backend: LanguageBackend, chain: Chain) -> None:
        self._backend, self._chain = backend, chain
        self._cached: dict[int, tuple[Any, Any]] = {}  # by layer: keys and values [1, G, columns, K]
        self.num_tokens = 0

    def num_columns(self, layer: int) -> int:
        """Columns in the cache of a layer: tokens times visits."""
        return int(self._cached[layer][0].shape[2]) if layer in self._cached else 0

    def logits(self, token_ids: Sequence[int]) -> Array:
        """Read the next tokens; logits [V] after the last."""
        rows = Rows(np.asarray([self.num_tokens]), np.asarray([len(token_ids)]))
        carry = self._backend.embed({"token_ids": np.asarray([token_ids], dtype=np.int64)}, rows)
        for layer in self._chain.layers:
            carry = self._visit(layer, carry, len(token_ids))
        self.num_tokens += len(token_ids)
        last: Array = self._backend.head(carry, np.asarray([[len(token_ids) - 1]]))["logits"][0, 0]
        return last

    def _visit(self, layer: int, carry: Carry, num_new: int) -> Carry:
        mask = released_mask(num_new, self.num_columns(layer))
        after, new = self._backend.visit(layer, carry, mask, self._cached.get(layer))
        self._cached[layer] = new
        return after


def released_mask(num_new: int, num_past: int) -> Array:
    """[1, 1, S, P + S] bool: causal from the top left for several new tokens, everything for one."""
    columns = np.arange(num_past + num_new)
    visible = columns <= np.arange(num_new)[:, None] if num_new > 1 else columns[None] >= 0
    return visible[None, None]
