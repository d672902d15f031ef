"""Arrays as the bytes they are: the Open Inference Protocol's binary tensors, and back. Sends nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from models import datatype as datatypes
from models.chain import Chain
from service.client.errors import InvalidError, Problem
from service.client.results import Array, Layers, Prediction, Tensor, Usage

DOCUMENT_BYTES = "Inference-Header-Content-Length"
# By datatype, as they travel.
DTYPES: Mapping[str, Any] = {datatype: np.dtype(name).newbyteorder("<") for datatype, name in datatypes.DTYPES.items()}


def pack(
    inputs: Array | Mapping[str, Array], takes: Sequence[Tensor], asked: Mapping[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference on inputs [B, ...]. Raises InvalidError where they do not fit the model."""
    arrays = _named(inputs, takes)
    raw = [_cast(array, takes, name) for name, array in arrays.items()]
    document = orjson.dumps(
        {
            "parameters": {**asked, "binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": datatype,
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, (datatype, array) in zip(arrays, raw, strict=True)
            ],
        }
    )
    body = b"".join((document, *(array.tobytes() for _, array in raw)))
    return body, {DOCUMENT_BYTES: str(len(document)), "content-type": "application/octet-stream"}


def unpack(content: bytes, document_bytes: str, request_id: str) -> Prediction:
    """The answer to such an inference."""
    size = int(document_bytes)
    document = orjson.loads(content[:size])
    arrays, start = {}, size
    for output in document["outputs"]:
        dtype = DTYPES[output["datatype"]]
        flat = np.frombuffer(content, dtype, math.prod(output["shape"]), start)
        arrays[output["name"]] = flat.reshape(output["shape"]).copy()  # one's own, to be written to
        start += flat.nbytes
    ran = document["parameters"]
    return Prediction(
        model=document["model_name"],
        version=document["model_version"],
        request_id=request_id,
        usage=Usage(ran["layers_executed"]),
        chains=_chains(ran["chain"], len(next(iter(arrays.values())))),
        layers_executed=ran["layers_executed"],
        layers_full=ran["layers_full"],
        arrays=arrays,
        degraded=bool(ran.get("degraded")),
        cached=ran.get("cached") or 0,
    )


def _named(inputs: Array | Mapping[str, Array], takes: Sequence[Tensor]) -> Mapping[str, Array]:
    names = [tensor.name for tensor in takes]
    if not isinstance(inputs, Mapping):
        if len(takes) != 1:
            raise _mismatch(f"one array came and the model takes {names}; send arrays by name")
        return {names[0]: inputs}
    if inputs.keys() != set(names):
        raise _mismatch(f"arrays {sorted(inputs)} came; the model takes {sorted(names)}")
    return inputs


def _cast(array: Array, takes: Sequence[Tensor], name: str) -> tuple[str, Array]:
    datatype = next(tensor.datatype for tensor in takes if tensor.name == name)
    dtype = DTYPES.get(datatype)
    is_whole = dtype is not None and array.dtype.kind in "iu" and dtype.kind in "iu"
    if dtype is None or not (is_whole or np.can_cast(array.dtype, dtype, "same_kind")):
        raise _mismatch(f"input {name!r} is {array.dtype}; the model takes {datatype}; convert it first")
    if is_whole and array.size and (said := datatypes.beyond(int(array.min()), int(array.max()), datatype)):
        raise _mismatch(f"input {name!r} holds {said}; send numbers in that range")
    return datatype, np.ascontiguousarray(array, dtype)


def _chains(told: str | Sequence[str], num_rows: int) -> tuple[Layers, ...]:
    if isinstance(told, str):
        return (_layers(told),) * num_rows
    return tuple(map(_layers, told))


def _layers(text: str) -> Layers:
    """No layers of a model that is served whole."""
    return Chain.parse(text).layers if text else ()


def _mismatch(detail: str) -> InvalidError:
    """What the server would have said."""
    return InvalidError(Problem(422, "The input does not fit the model", detail))
