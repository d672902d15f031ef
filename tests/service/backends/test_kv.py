"""Pages: what is written comes back from its own pages, and from no other."""

import numpy as np
import pytest
import torch

from models.artifact import LanguageSpec
from service.backends.arrays import Arrays, HostArrays
from service.backends.kv import KVCache, page_bytes
from service.backends.protocol import Array, Ints, Rows
from service.backends.torch_arrays import TorchArrays

LANGUAGE = LanguageSpec(
    vocab_size=9, max_length=6, num_kv_heads=2, head_size=3, eos_token_ids=(), tokenizer="tokenizer.json"
)
SIZE = 2


@pytest.fixture(params=[HostArrays(), TorchArrays(torch.device("cpu"))], ids=["numpy", "torch"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    made: Arrays = request.param
    return made


def ints(*values: int) -> Ints:
    return np.asarray(values, dtype=np.int64)


def random(batch: int, length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(batch, 2, length, 3)).astype(np.float32)


class Kept:
    """A cache and what should be in it, by page."""

    def __init__(self, arrays: Arrays, num_pages: int) -> None:
        self.cache, self.arrays = KVCache(LANGUAGE, num_pages, SIZE, arrays), arrays
        self.keys = np.zeros((num_pages, 2, SIZE, 3), np.float32)
        self.values = np.zeros_like(self.keys)

    def write(self, starts: Ints, lengths: Ints, pages: Ints, seed: int = 0) -> None:
        new = int(lengths.max())
        keys, values = random(len(pages), new, seed), random(len(pages), new, seed + 1)
        self.cache.write(Rows(starts, lengths, pages), self.arrays.take_in(keys), self.arrays.take_in(values))
        for row in range(len(pages)):
            for token in range(lengths[row]):
                column, place = divmod(int(starts[row]) + token, SIZE)
                if (page := pages[row, column]) >= 0:
                    self.keys[page, :, place:] = self.values[page, :, place:] = 0.0
                    self.keys[page, :, place] = keys[row, :, token]
                    self.values[page, :, place] = values[row, :, token]

    def check(self, starts: Ints, pages: Ints) -> None:
        """Every token before `starts` is read as it was written, and the rest is finite."""
        num_columns = self.cache.num_columns(starts)
        assert num_columns % SIZE == 0
        assert 0 <= num_columns - starts.max() < SIZE
        lengths = np.ones_like(starts)
        for got, wanted in zip(
            self.cache.read(Rows(starts, lengths, pages), num_columns), (self.keys, self.values), strict=True
        ):
            read = self.arrays.give_out(got)
            assert read.shape == (len(pages), 2, num_columns, 3)
            assert np.isfinite(read).all()
            for row, start in enumerate(starts):
                for token in range(start):
                    page = pages[row, token // SIZE]
                    assert (read[row, :, token] == wanted[page, :, token % SIZE]).all()


def test_ragged_writes_land_in_their_own_pages(arrays: Arrays) -> None:
    kept, pages = Kept(arrays, num_pages=9), np.asarray([[4, 1, 8], [7, 0, 2], [5, 3, 6]])
    kept.write(ints(0, 0), ints(3, 1), pages[:2], seed=0)
    kept.check(ints(3, 1), pages[:2])
    kept.write(ints(3, 1, 0), ints(1, 2, 2), pages, seed=2)
    kept.check(ints(4, 3, 2), pages)
    kept.check(ints(4, 0), pages[[0, 2]])
    kept.write(ints(4, 3, 2), ints(2, 3, 1), pages, seed=4)
    kept.check(ints(6, 6, 3), pages)


def test_padding_is_not_written(arrays: Arrays) -> None:
    kept = Kept(arrays, num_pages=6)
    kept.write(ints(0, 0), ints(5, 1), np.asarray([[0, 1, 2], [3, 4, 5]]))
    keys, _ = kept.cache.read(Rows(ints(6), ints(1), ints(3, 4, 5)[None]), 6)
    assert not arrays.give_out(keys)[:, :, 1:].any()


def test_page_of_others_is_not_written(arrays: Arrays) -> None:
    kept = Kept(arrays, num_pages=4)
    kept.write(ints(0), ints(4), ints(0, 1)[None], seed=0)
    kept.write(ints(0), ints(4), ints(-1, 2)[None], seed=2)
    kept.check(ints(4, 4), np.asarray([[0, 1], [0, 2]]))


def test_what_the_last_holder_left_is_gone_with_the_first_token(arrays: Arrays) -> None:
    kept = Kept(arrays, num_pages=2)
    left = arrays.take_in(np.full((1, 2, 4, 3), np.nan, np.float32))
    kept.cache.write(Rows(ints(0), ints(4), ints(0, 1)[None]), left, left)
    kept.write(ints(0), ints(1), ints(1)[None])
    kept.check(ints(1), ints(1)[None])


def test_row_without_tokens_reads_nothing_of_its_pages(arrays: Arrays) -> None:
    kept = Kept(arrays, num_pages=4)
    left = arrays.take_in(np.full((1, 2, 4, 3), np.nan, np.float32))
    kept.cache.write(Rows(ints(0), ints(4), ints(2, 3)[None]), left, left)
    kept.write(ints(0), ints(3), ints(0, 1)[None])
    kept.check(ints(3, 0), np.asarray([[0, 1], [2, 3]]))
    kept.check(ints(3, 0), np.asarray([[0, 1], [-1, -1]]))


def test_page_holds_keys_and_values_of_its_tokens(arrays: Arrays) -> None:
    keys, values = KVCache(LANGUAGE, 1, SIZE, arrays).read(Rows(ints(2), ints(1), ints(0)[None]), SIZE)
    assert page_bytes(LANGUAGE, SIZE) == keys.nbytes + values.nbytes == 2 * 4 * 2 * SIZE * 3
