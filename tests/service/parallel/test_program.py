"""Programs survive the way: what is read is what was recorded, however large or odd; what is none is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from service.backends.protocol import Array
from service.parallel.digest import Trace, epoch_key
from service.parallel.messages import Sizes
from service.parallel.probing import _fitted
from service.parallel.program import Op, Program, Reading

DTYPES = ("int64", "float32", "float64", "float16", "bool", "int32", "uint8")
ANY_ARRAY = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays(np.dtype(dtype), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.lists(ANY_ARRAY, max_size=6), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_program_is_read_as_it_was_recorded(given_arrays: list[Array], numbers: list[int]) -> None:
    program = Program()
    places = [program.place(array) for array in given_arrays]
    program.add(Op.FREE, len(numbers), *numbers)
    reading = Reading(bytearray(program.encode()))
    assert reading.op() is Op.FREE
    assert reading.numbers() == numbers
    assert reading.op() is None
    for place, array in zip(places, given_arrays, strict=True):
        found = reading.arrays[place]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_array_that_comes_twice_is_sent_once_and_stays_one_object() -> None:
    program, starts = Program(), np.arange(1000)
    program.add(Op.LAYER, program.place(starts), program.place(starts), program.place(None))
    body = program.encode()
    assert len(body) < 2100  # 1000 numbers below 2^15
    reading = Reading(body)
    assert reading.op() is Op.LAYER
    first, second, third = reading.array(), reading.array(), reading.array()
    assert first is second
    assert third is None


@given(st.binary(max_size=64))
def test_what_is_no_program_is_refused(body: bytes) -> None:
    with pytest.raises((ValueError, IndexError, StopIteration, OverflowError, MemoryError)):
        _read(body)


def _read(body: bytes) -> None:
    reading = Reading(body)
    while reading.op() is not None:
        reading.array()
    raise ValueError("there was nothing in it")


def test_traces_differ_for_ever_after_one_difference() -> None:
    key = epoch_key(b"secret", 1, b"salt")
    one, other, stranger = Trace(key), Trace(key), Trace(epoch_key(b"secret", 2, b"salt"))
    assert one.extend(b"a") == other.extend(b"a") != stranger.extend(b"a")
    assert one.extend(b"b") != other.extend(b"c")
    assert one.extend(b"d") != other.extend(b"d")


@given(*(st.integers(0, 1000) for _ in range(3)), st.integers(1, 5), st.integers(1, 40))
def test_sizes_are_found_from_three_lengths(row: int, token: int, pair: int, num_rows: int, length: int) -> None:
    sizes = Sizes(row, token, pair)
    assert _fitted(*(sizes.num_bytes(1, one, 0) for one in (1, 2, 3))) == sizes
    assert sizes.num_bytes(num_rows, length, 0) == num_rows * sizes.num_bytes(1, length, 0)
