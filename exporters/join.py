"""The ONNX graphs of parts, joined into the whole graph. Knows names and nodes, and no torch."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from exporters.nodes import beside, constant, count_columns, value_info
from exporters.parts import Parts, Port
from models.graph import append, as_model


def join(parts: Parts, models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One graph of the full chain, with the inputs and outputs of `parts.whole`.

    `models` are embed, every layer and head, of one opset. The nodes of each part stay as they are, so that the joined
    graph computes bit for bit what the parts compute one after the other.
    """
    embed, *layers, head = (model.graph for model in models)
    whole = onnx.GraphProto(name="whole")
    stream, *shared = (port.name for port in parts.embed.outputs)
    past, new = parts.kept
    if parts.cached:
        count_columns(whole, past[0], parts.embed.inputs[-1])
    append(whole, embed, "embed", [port.name for port in parts.embed.inputs], [stream, *shared])
    for i, layer in enumerate(layers):
        name = parts.layers[i].name
        cached = [_pick(whole, port, i) for port in past]
        taken = [stream, *shared, *beside(parts.layers[i], parts.whole), *cached]
        append(whole, layer, name, taken, [name, *(f"{port.name}/{i}" for port in new)])
        stream = name
    append(whole, head, "head", [stream, *beside(parts.head, parts.whole)], [parts.whole.outputs[0].name])
    for port in new:
        _stack(whole, port, len(layers))
    whole.input.extend(value_info(port) for port in parts.whole.inputs)
    whole.output.extend(value_info(port) for port in parts.whole.outputs)
    return as_model(whole, models[0])


def _pick(whole: onnx.GraphProto, port: Port, layer: int) -> str:
    """One layer's part of a stack over layers.

    Indices of 32 bits: those of 64 ONNX Runtime turns into one split of the whole stack before the first layer, whose
    copies have left the caches by the time that the last layers read them.
    """
    name = f"{port.name}/{layer}"
    index = constant(whole, f"{name}/index", layer, np.int32)
    whole.node.append(helper.make_node("Gather", [port.name, index], [name], axis=0))
    return name


def _stack(whole: onnx.GraphProto, port: Port, num_layers: int) -> None:
    """The layers' parts as one stack."""
    axes = constant(whole, f"{port.name}/axes", [0])
    rows = [f"{port.name}/{i}/row" for i in range(num_layers)]
    whole.node.extend(helper.make_node("Unsqueeze", [row.removesuffix("/row"), axes], [row]) for row in rows)
    whole.node.append(helper.make_node("Concat", rows, [port.name], axis=0))
