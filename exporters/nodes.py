"""Pieces of ONNX graphs: parts under names of a larger one, constants, ports. Knows names and nodes, no torch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.parts import Part, Port

_TYPES = {"FP32": onnx.TensorProto.FLOAT, "INT64": onnx.TensorProto.INT64}


def append(graph: onnx.GraphProto, part: onnx.GraphProto, name: str, inputs: list[str], outputs: list[str]) -> None:
    """Add a part's nodes and weights under `name`, its inputs and outputs bound to names of `graph`."""
    graph.node.extend((copy := bound(part, name, inputs, outputs)).node)
    graph.initializer.extend(copy.initializer)


def bound(part: onnx.GraphProto, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.GraphProto:
    """A copy whose inputs and outputs have these names, and all else a name of its own under `name`."""
    ports = (value.name for value in (*part.input, *part.output))
    names = dict(zip(ports, (*inputs, *outputs), strict=True))
    copy = onnx.GraphProto()
    copy.CopyFrom(part)
    _rename(copy, lambda old: names.get(old, f"{name}/{old}") if old else "")  # "" is an input left out
    return copy


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


def model_of(graph: onnx.GraphProto, part: onnx.ModelProto) -> onnx.ModelProto:
    """A graph made of parts, of the opset and the producer of one of them."""
    model = helper.make_model(graph, opset_imports=part.opset_import, ir_version=part.ir_version)
    model.producer_name, model.producer_version = part.producer_name, part.producer_version
    return model


def _rename(graph: onnx.GraphProto, new_name: Callable[[str], str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new_name(value.name)
    for node in graph.node:
        node.name = new_name(node.name)
        node.input[:] = [new_name(name) for name in node.input]
        node.output[:] = [new_name(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, new_name)
