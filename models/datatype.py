"""The numbers that tensors hold, by their names in the Open Inference Protocol. Knows no array."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

Datatype: TypeAlias = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
]
# What numpy calls them.
DTYPES: Mapping[Datatype, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}


def beyond(least: int, most: int, datatype: str) -> str:
    """What to say of integers from `least` to `most` if an integer datatype does not take them all, else nothing."""
    kind, _, bits = datatype.rpartition("INT")
    low, high = (0, (1 << int(bits)) - 1) if kind else (-1 << int(bits) - 1, (1 << int(bits) - 1) - 1)
    stray = least if least < low else most
    return "" if low <= stray <= high else f"{stray}; {datatype} takes {low} to {high}"
