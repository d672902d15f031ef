"""Tensors on the wire: from JSON lists and little-endian bytes to arrays, and back. No element is touched by Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.artifact import TensorSpec
from models.datatype import DTYPES, Datatype
from models.errors import InputError
from service.api.v2.body import DOCUMENT_BYTES
from service.api.v2.schemas import InferInput
from service.engine.tensor import read_inputs

Array: TypeAlias = NDArray[Any]

# The data of one input: a share of the bytes that came, or a list from the document.
Piece: TypeAlias = memoryview | list[Any]

WIRE: dict[Datatype, np.dtype[Any]] = {datatype: np.dtype(name).newbyteorder("<") for datatype, name in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor: for numbers an array of `shape`, for BYTES the texts of its elements, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | list[str]
    raw: bytes | memoryview


def pieces(inputs: Sequence[InferInput], binary: memoryview) -> list[Piece]:
    """The data of each input: its share of `binary` (a view), or the list from the document.

    Raises InputError where sizes do not add up, or an input came twice, both ways or without data.
    """
    names = [one.name for one in inputs]
    if len(set(names)) < len(names):
        raise InputError(f"the inputs {names} name one twice; send each once")
    told = sum(one.parameters.binary_data_size or 0 for one in inputs)
    if told != len(binary):
        raise InputError(
            f"the inputs announce {told} bytes of binary data and {len(binary)} lie behind the document; "
            f"make every binary_data_size and the header {DOCUMENT_BYTES} fit the body"
        )
    found, start = [], 0
    for one in inputs:
        found.append(_piece(one, binary[start:]))
        start += one.parameters.binary_data_size or 0
    return found


def read(inputs: Sequence[InferInput], data: Sequence[Piece], specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Arrays by input name, of the shapes and datatypes in `specs`. Raises InputError naming input, value and limit."""
    datatypes = {spec.name: spec.datatype for spec in specs}
    named: dict[str, object] = {}
    for one, piece in zip(inputs, data, strict=True):
        if isinstance(piece, memoryview) and one.name in datatypes:
            named[one.name] = _from_bytes(one, piece, datatypes[one.name])
        else:
            named[one.name] = {"shape": one.shape, "datatype": one.datatype, "data": piece}
    return read_inputs(named, specs)


def write(array: Array, spec: TensorSpec) -> Output:
    """An output as its datatype says; `data` and `raw` share memory."""
    values = np.ascontiguousarray(array, WIRE[spec.datatype])
    return Output(spec.name, spec.datatype, array.shape, values.reshape(-1), values.reshape(-1).view(np.uint8).data)


def _piece(one: InferInput, rest: memoryview) -> Piece:
    size = one.parameters.binary_data_size
    if (size is None) == (one.data is None):
        raise InputError(f"input {one.name!r} must have either 'data' or parameters.binary_data_size; send one of them")
    if size is not None:
        return rest[:size]
    if not isinstance(one.data, list):
        raise InputError(f"input {one.name!r} has data of type {type(one.data).__name__}; send a list, nested or flat")
    return one.data


def _from_bytes(one: InferInput, piece: memoryview, datatype: Datatype) -> Array:
    if one.datatype != datatype:
        raise InputError(f"input {one.name!r} came as {one.datatype[:40]!r}; the model takes {datatype}")
    dtype = WIRE[datatype]
    wanted = math.prod(one.shape) * dtype.itemsize
    if wanted != len(piece):
        raise InputError(
            f"input {one.name!r} has {len(piece)} bytes; shape {one.shape} of {datatype} takes {_short(wanted)}"
            "; make shape and data agree"
        )
    if datatype == "BOOL" and (np.frombuffer(piece, np.uint8) > 1).any():
        raise InputError(f"input {one.name!r} has a byte above 1 in BOOL data; send 0 or 1")
    return np.frombuffer(piece, dtype).reshape(one.shape)


def _short(number: int) -> str:
    return str(number) if number < 1 << 63 else "more than any body"
