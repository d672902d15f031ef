"""Rows of numbers in JSON: read into an array exactly as orjson and numpy would, or left to them."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.numbers import read_document

_NUMBERS = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e308, 5e-324, 2**53]),
)
_ODD = st.one_of(_NUMBERS, st.booleans(), st.none(), st.text('[]\\"a1', max_size=3), st.integers(2**63, 2**70))


@st.composite
def rectangles(draw: st.DrawFn) -> Any:
    rows, columns, depth = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    value: Any = [draw(_NUMBERS) for _ in range(columns)]
    for _ in range(depth):
        value = [[draw(_NUMBERS) for _ in range(columns)] if depth == 1 else value for _ in range(rows)]
    return value


_TREES = st.recursive(_ODD, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@given(inputs=st.one_of(rectangles(), _TREES), chain=st.sampled_from(["full", [0, 1], [[0], "0-1"], "[", "\\["]))
def test_document_reads_as_orjson_reads_it(inputs: Any, chain: Any) -> None:
    content = orjson.dumps({"model": "m", "inputs": inputs, "chain": chain}) if _fits(inputs) else b"[" * 3
    try:
        plain = orjson.loads(content)
    except orjson.JSONDecodeError:
        with pytest.raises(orjson.JSONDecodeError):
            read_document(content)
        return
    document = read_document(content)
    read = document["inputs"]
    assert {name: value for name, value in document.items() if name != "inputs"} == {"model": "m", "chain": chain}
    if isinstance(read, np.ndarray):
        expected = np.asarray(plain["inputs"])
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.tobytes() == expected.tobytes()
    else:
        assert read == plain["inputs"]


def _fits(value: Any) -> bool:
    """Whether orjson can write it: integers have 64 bits."""
    if isinstance(value, list):
        return all(map(_fits, value))
    return not (isinstance(value, int) and value >= 2**64)


@pytest.mark.parametrize(
    "inputs",
    [[[1, 2.5], [3, True]], [[1, 2, 3], [3]], [[1, 2], [[3], 4]], [["1"]], [[None]], [], [[]], [[], []], {"x": 1}, "a"],
)
def test_what_is_no_rectangle_of_numbers_is_left_as_lists(inputs: Any) -> None:
    assert read_document(orjson.dumps({"inputs": inputs}))["inputs"] == inputs


@pytest.mark.parametrize(("inputs", "kind"), [([[1, 2], [3, 4]], "i"), ([[1, 2], [3, 4.5]], "f"), ([[0.5, 1]], "f")])
def test_whole_numbers_stay_whole(inputs: Any, kind: str) -> None:
    read = read_document(orjson.dumps({"inputs": inputs}))["inputs"]
    assert isinstance(read, np.ndarray)
    assert read.dtype.kind == kind


def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    assert read_document(b'{"inputs": [[1]], "inputs": [[2]]}') == {"inputs": [[2]]}


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"inputs": [1,]}', b'{"inputs": [NaN]}', b"\xff", b'{"inputs": [01]}']
)
def test_malformed_document_is_told_by_orjson(content: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        read_document(content)
