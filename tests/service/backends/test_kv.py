"""KV slots: what is written comes back from its own slot, and from no other."""

from typing import Any

import numpy as np
import pytest
import torch

from models.artifact import LanguageSpec
from service.backends.arrays import Arrays, HostArrays
from service.backends.kv import KVCache, slot_bytes
from service.backends.protocol import Array, Ints, Rows
from service.backends.torch_arrays import TorchArrays

LANGUAGE = LanguageSpec(
    vocab_size=9, max_length=6, num_kv_heads=2, head_size=3, eos_token_ids=(), tokenizer="tokenizer.json"
)


@pytest.fixture(params=[HostArrays(), TorchArrays(torch.device("cpu"))], ids=["numpy", "torch"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    made: Arrays = request.param
    return made


def ints(*values: int) -> Ints:
    return np.asarray(values, dtype=np.int64)


def random(batch: int, length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(batch, 2, length, 3)).astype(np.float32)


class Kept:
    """A cache and what should be in it."""

    def __init__(self, arrays: Arrays, num_slots: int) -> None:
        self.cache, self.arrays = KVCache(LANGUAGE, num_slots, arrays), arrays
        self.keys = np.zeros((num_slots, 2, 6, 3), np.float32)
        self.values = np.zeros_like(self.keys)

    def write(self, starts: Ints, lengths: Ints, slots: Ints, seed: int) -> None:
        new = int(lengths.max())
        keys, values = random(len(slots), new, seed), random(len(slots), new, seed + 1)
        self.cache.write(Rows(starts, lengths, slots), self.arrays.take_in(keys), self.arrays.take_in(values))
        for row, slot in enumerate(slots):
            for token in range(lengths[row]):
                self.keys[slot, :, starts[row] + token] = keys[row, :, token]
                self.values[slot, :, starts[row] + token] = values[row, :, token]

    def check(self, slots: Ints, length: int) -> None:
        keys, values = self.cache.read(slots, length)
        assert (self.arrays.give_out(keys) == self.keys[slots, :, :length]).all()
        assert (self.arrays.give_out(values) == self.values[slots, :, :length]).all()


def test_ragged_writes_land_in_their_own_slots_and_columns(arrays: Arrays) -> None:
    kept = Kept(arrays, num_slots=5)
    kept.write(ints(0, 0), ints(3, 1), ints(4, 1), seed=0)
    kept.write(ints(3, 1, 0), ints(1, 2, 2), ints(4, 1, 2), seed=2)
    for length in (0, 1, 4, 6):
        kept.check(ints(0, 1, 2, 3, 4), length)
        kept.check(ints(2, 4), length)


def test_padding_is_not_written(arrays: Arrays) -> None:
    kept = Kept(arrays, num_slots=2)
    kept.write(ints(0, 0), ints(5, 1), ints(0, 1), seed=0)
    keys, _ = kept.cache.read(ints(1), 6)
    assert not arrays.give_out(keys)[:, :, 1:].any()


def test_last_column_can_be_written(arrays: Arrays) -> None:
    kept = Kept(arrays, num_slots=1)
    kept.write(ints(0), ints(5), ints(0), seed=0)
    kept.write(ints(5), ints(1), ints(0), seed=2)
    kept.check(ints(0), 6)


def test_cleared_slot_is_empty_and_its_neighbours_are_not(arrays: Arrays) -> None:
    kept = Kept(arrays, num_slots=3)
    kept.write(ints(0, 0, 0), ints(2, 2, 2), ints(0, 1, 2), seed=0)
    kept.cache.clear(ints(1))
    kept.cache.clear(ints())
    kept.keys[1] = kept.values[1] = 0.0
    kept.check(ints(0, 1, 2), 6)


def test_what_was_read_does_not_change_afterwards(arrays: Arrays) -> None:
    kept = Kept(arrays, num_slots=1)
    kept.write(ints(0), ints(2), ints(0), seed=0)
    keys, _ = kept.cache.read(ints(0), 2)
    before: Any = arrays.give_out(keys).copy()
    kept.cache.clear(ints(0))
    assert (arrays.give_out(keys) == before).all()


def test_slot_holds_keys_and_values_of_the_whole_context(arrays: Arrays) -> None:
    keys, values = KVCache(LANGUAGE, 1, arrays).read(ints(0), 6)
    assert slot_bytes(LANGUAGE) == keys.nbytes + values.nbytes == 2 * 4 * 2 * 6 * 3
