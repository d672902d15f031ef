"""What graphs that are made of parts have besides these: ports, constants, columns counted. Knows names, no torch."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.parts import Part, Port

_TYPES = {"FP32": onnx.TensorProto.FLOAT, "INT64": onnx.TensorProto.INT64}


def beside(part: Part, whole: Part) -> list[str]:
    """What a part takes from the inputs of the whole graph, as they are."""
    return [port.name for port in part.inputs if port in whole.inputs]


def count_columns(graph: onnx.GraphProto, past: Port, columns: Port) -> None:
    """Number the cache's columns from 0 to P - 1, from the shape of the cache [L, B, G, P, K]."""
    axis = past.dims.index("past")
    first, step = constant(graph, "columns/first", 0), constant(graph, "columns/step", 1)
    axes = constant(graph, "columns/axes", [0])
    graph.node.extend(
        (
            helper.make_node("Shape", [past.name], ["columns/shape"], start=axis, end=axis + 1),
            helper.make_node("Squeeze", ["columns/shape", axes], ["columns/count"]),
            helper.make_node("Range", [first, "columns/count", step], [columns.name]),
        )
    )


def constant(
    graph: onnx.GraphProto, name: str, value: int | list[int], dtype: type[np.integer[Any] | np.bool_] = np.int64
) -> str:
    """Store numbers under `name`, and return it."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
    return name


def value_info(port: Port) -> onnx.ValueInfoProto:
    """A port as ONNX says it."""
    return helper.make_tensor_value_info(port.name, _TYPES[port.datatype], port.dims)
