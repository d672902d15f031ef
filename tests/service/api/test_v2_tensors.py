"""Tensors on the wire: every datatype both ways, several inputs, and nothing copied that need not be."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from models.artifact import TensorSpec
from models.datatype import Datatype
from models.errors import InputError
from service.api.v2 import tensors
from service.api.v2.schemas import InferInput

VALUES: dict[Datatype, list[Any]] = {
    "BOOL": [True, False, True, True, False, False],
    "INT32": [0, -1, 2**31 - 1, -(2**31), 5, 6],
    "INT64": [0, -1, 2**53 - 1, -(2**53), 5, 6],
    "FP16": [0.0, -1.5, 65504.0, 6e-8, 1.0, 2.0],
    "FP32": [0.0, -1.5, 1e38, 1e-38, 1.0, 2.0],
    "FP64": [0.0, -1.5, 1e308, 1e-308, 1.0, 2.0],
}


def _spec(datatype: Datatype, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, 3))


def _sent(datatype: str, size: int | None = None, data: Any = None, name: str = "x") -> InferInput:
    parameters = {} if size is None else {"binary_data_size": size}
    return InferInput.model_validate(
        {"name": name, "shape": [2, 3], "datatype": datatype, "data": data, "parameters": parameters}
    )


def _read(sent: Sequence[InferInput], binary: memoryview, specs: tuple[TensorSpec, ...]) -> Any:
    return tensors.read(sent, tensors.pieces(sent, binary), specs)


@pytest.mark.parametrize("datatype", VALUES)
def test_datatypes_go_out_and_come_in_unchanged(datatype: Datatype) -> None:
    sent = _sent(datatype, data=VALUES[datatype])
    array = _read([sent], memoryview(b""), (_spec(datatype),))["x"]
    written = tensors.write(array, _spec(datatype))
    assert (written.datatype, written.shape) == (datatype, (2, 3))
    for offset in (0, 1):  # behind a document of any length
        raw = memoryview(b"." * offset + bytes(written.raw))[offset:]
        back = _read([_sent(datatype, len(raw))], raw, (_spec(datatype),))["x"]
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_several_inputs_lie_in_the_order_of_the_document() -> None:
    first, second = np.arange(6, dtype="<f4"), np.arange(6, dtype="<i8")
    raw = memoryview(first.tobytes() + second.tobytes())
    sent = [_sent("FP32", 24, name="b"), _sent("INT32", data=[[1, 2, 3]] * 2, name="c"), _sent("INT64", 48, name="a")]
    found = _read(sent, raw, (_spec("INT64", "a"), _spec("FP32", "b"), _spec("INT32", "c")))
    np.testing.assert_array_equal(found["b"], first.reshape(2, 3))
    np.testing.assert_array_equal(found["a"], second.reshape(2, 3))
    np.testing.assert_array_equal(found["c"], [[1, 2, 3]] * 2)


def test_pieces_are_views() -> None:
    raw = memoryview(bytes(24))
    (piece,) = tensors.pieces([_sent("FP32", 24)], raw)
    assert isinstance(piece, memoryview)
    assert np.shares_memory(np.frombuffer(piece, np.uint8), np.frombuffer(raw, np.uint8))
    array = np.zeros((2, 3), np.float32)
    written = tensors.write(array, _spec("FP32"))
    assert np.shares_memory(np.frombuffer(written.raw, np.uint8), array)


def test_outputs_need_not_lie_together() -> None:
    array = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    assert bytes(tensors.write(array, _spec("FP32")).raw) == array.tobytes()


def test_byte_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(InputError, match="'x' has a byte above 1 in BOOL data; send 0 or 1"):
        _read([_sent("BOOL", 6)], memoryview(b"\0\1\2\0\0\0"), (_spec("BOOL"),))


@pytest.mark.parametrize("data", [[1.5] * 6, [2**31] * 6, [10**30] * 6])
def test_numbers_are_never_cut_to_fit(data: list[Any]) -> None:
    with pytest.raises(InputError, match="'x' holds"):
        _read([_sent("INT32", data=data)], memoryview(b""), (_spec("INT32"),))
