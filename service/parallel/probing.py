"""How large carries are, found out by making a few: so that nobody has to ask while a program is recorded."""

from collections.abc import Mapping

import numpy as np

from models.artifact import Manifest
from models.datatype import DTYPES
from service.backends.protocol import Array, Backend, Carry, Rows
from service.parallel.messages import Facts, Sizes

# As many as there are unknowns in a row's size.
_LENGTHS = (1, 2, 3)


def find_facts(manifest: Manifest, backend: Backend) -> Facts:
    """What a backend says of itself, and the sizes of its carries. Runs a few tokens; the same on every rank."""
    embedded, visited, kept = zip(*(_num_bytes(manifest, backend, length) for length in _LENGTHS), strict=True)
    sizes = (_fitted(*found) for found in (embedded, visited, kept))
    return Facts(backend.num_layers, backend.num_pages, backend.page_size, *sizes)


def _num_bytes(manifest: Manifest, backend: Backend, length: int) -> tuple[int, int, int]:
    inputs, rows, kept = _inputs(manifest, length), None, None
    if manifest.language:
        lengths = np.asarray([length], np.int64)
        rows, kept = Rows(np.zeros(1, np.int64), lengths), Rows(np.zeros(1, np.int64), lengths, keep=True)
    carry: Carry = backend.embed(inputs, rows)
    found = [carry, backend.layer(0, carry, rows), backend.layer(0, carry, kept)] if backend.num_layers else [carry] * 3
    embedded, visited, keeping = map(backend.num_bytes, found)
    return embedded, visited, keeping


def _inputs(manifest: Manifest, length: int) -> Mapping[str, Array]:
    """Zeros, of texts so many; rows of a tensor model have one size whatever the length."""
    if manifest.language or manifest.encoder:
        ids = np.zeros((1, length), np.int64)
        return {"token_ids": ids, "token_types": ids, "lengths": np.asarray([length], np.int64)}
    return {
        spec.name: np.zeros([max(size, 1) for size in spec.shape], DTYPES[spec.datatype]) for spec in manifest.inputs
    }


def _fitted(one: int, two: int, three: int) -> Sizes:
    """Bytes of a row as row + token x S + pair x S x S, from those of 1, 2 and 3 tokens."""
    pair = (three - 2 * two + one) // 2
    token = two - one - 3 * pair
    return Sizes(one - token - pair, token, pair)
