"""The ONNX graphs of parts, joined into the whole graph. Knows names and nodes, and no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.parts import Part, Parts, Port
from models.graph import append, as_model

_TYPES = {"FP32": onnx.TensorProto.FLOAT, "INT64": onnx.TensorProto.INT64}


def join(parts: Parts, models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One graph of the full chain, with the inputs and outputs of `parts.whole`.

    `models` are embed, every layer and head, of one opset. The nodes of each part stay as they are, so that the joined
    graph computes bit for bit what the parts compute one after the other.
    """
    embed, *layers, head = (model.graph for model in models)
    whole = onnx.GraphProto(name="whole")
    stream, *shared = (port.name for port in parts.embed.outputs)
    kept = parts.num_kept
    past, new = parts.whole.inputs[len(parts.whole.inputs) - kept :], parts.whole.outputs[1:]
    if parts.cached:
        _count_columns(whole, past[0], parts.embed.inputs[-1])
    append(whole, embed, "embed", [port.name for port in parts.embed.inputs], [stream, *shared])
    for i, layer in enumerate(layers):
        name = parts.layers[i].name
        cached = [_pick(whole, port, i) for port in past]
        beside = _beside(parts.layers[i], parts.whole)
        append(whole, layer, name, [stream, *shared, *beside, *cached], [name, *(f"{port.name}/{i}" for port in new)])
        stream = name
    beside = _beside(parts.head, parts.whole)
    append(whole, head, "head", [stream, *beside], [parts.whole.outputs[0].name])
    for port in new:
        _stack(whole, port, len(layers))
    whole.input.extend(_value(port) for port in parts.whole.inputs)
    whole.output.extend(_value(port) for port in parts.whole.outputs)
    return as_model(whole, models[0])


def _beside(part: Part, whole: Part) -> list[str]:
    """What a part takes from the inputs of the whole graph, as they are."""
    return [port.name for port in part.inputs if port in whole.inputs]


def _count_columns(whole: onnx.GraphProto, past: Port, columns: Port) -> None:
    """Number the cache's columns from 0 to P - 1, from the shape of the cache [L, B, G, P, K]."""
    axis = past.dims.index("past")
    first, step = _constant(whole, "columns/first", 0), _constant(whole, "columns/step", 1)
    axes = _constant(whole, "columns/axes", [0])
    whole.node.extend(
        (
            helper.make_node("Shape", [past.name], ["columns/shape"], start=axis, end=axis + 1),
            helper.make_node("Squeeze", ["columns/shape", axes], ["columns/count"]),
            helper.make_node("Range", [first, "columns/count", step], [columns.name]),
        )
    )


def _pick(whole: onnx.GraphProto, port: Port, layer: int) -> str:
    """One layer's part of a stack over layers.

    Indices of 32 bits: those of 64 ONNX Runtime turns into one split of the whole stack before the first layer, whose
    copies have left the caches by the time that the last layers read them.
    """
    name = f"{port.name}/{layer}"
    index = _constant(whole, f"{name}/index", layer, np.int32)
    whole.node.append(helper.make_node("Gather", [port.name, index], [name], axis=0))
    return name


def _stack(whole: onnx.GraphProto, port: Port, num_layers: int) -> None:
    """The layers' parts as one stack."""
    axes = _constant(whole, f"{port.name}/axes", [0])
    rows = [f"{port.name}/{i}/row" for i in range(num_layers)]
    whole.node.extend(helper.make_node("Unsqueeze", [row.removesuffix("/row"), axes], [row]) for row in rows)
    whole.node.append(helper.make_node("Concat", rows, [port.name], axis=0))


def _constant(
    whole: onnx.GraphProto, name: str, value: int | list[int], dtype: type[np.integer[Any]] = np.int64
) -> str:
    whole.initializer.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
    return name


def _value(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, _TYPES[port.datatype], port.dims)
