"""The ONNX graphs of parts as one graph that runs any chain: a loop whose every visit takes its layer's weights.

Layers that compute the same take their weights, and whatever else differs, from stacks; layers of several kinds are
several branches. Knows names and nodes, and no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.nodes import beside, constant, count_columns, value_info
from exporters.parts import Parts, Port
from models.graph import append, as_model

CHAIN = Port("chain", ("visits",), "INT64")
# Inside the loop: the layer of a visit, and its place among the layers of its kind.
_LAYER, _PLACE = Port("visit/layer", (), "INT64"), "visit/place"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers of the same nodes."""

    name: str
    layers: tuple[int, ...]
    graphs: tuple[onnx.GraphProto, ...]


def loop(parts: Parts, models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One graph along a chain [V] int64, its last input; what visits keep goes in and comes out stacked by visit.

    `models` are embed, every layer and head, of one opset. The nodes of each part stay as they are.
    """
    embed, *layers, head = (model.graph for model in models)
    whole = onnx.GraphProto(name="any chain")
    stream, *shared = (port.name for port in parts.embed.outputs)
    past, new = (tuple(map(_by_visit, ports)) for ports in parts.kept)
    if parts.cached:
        count_columns(whole, past[0], parts.embed.inputs[-1])
    append(whole, embed, "embed", [port.name for port in parts.embed.inputs], [stream, *shared])
    body = _body(whole, parts, layers, [*shared, *beside(parts.layers[0], parts.whole)])
    whole.node.append(
        helper.make_node(
            "Scan",
            [stream, CHAIN.name, *(port.name for port in past)],
            ["last", *(port.name for port in new)],
            body=body,
            num_scan_inputs=1 + len(past),
        )
    )
    append(whole, head, "head", ["last", *beside(parts.head, parts.whole)], [parts.whole.outputs[0].name])
    plain = parts.whole.inputs[: len(parts.whole.inputs) - len(past)]
    whole.input.extend(value_info(port) for port in (*plain, *past, CHAIN))
    whole.output.extend(value_info(port) for port in (parts.whole.outputs[0], *new))
    return as_model(whole, models[0])


def _by_visit(port: Port) -> Port:
    return replace(port, dims=("visits", *port.dims[1:]))


def _body(
    whole: onnx.GraphProto, parts: Parts, layers: Sequence[onnx.GraphProto], unchanging: list[str]
) -> onnx.GraphProto:
    """One visit: stream, layer and what is kept of it, to the stream and what is kept then; `unchanging` is outside."""
    first = parts.layers[0]
    stream, *past = (_inside(port) for port in (first.inputs[0], *_last(first.inputs, parts.num_kept)))
    outputs = tuple(map(_inside, first.outputs))
    body = onnx.GraphProto(name="visit")
    body.input.extend(value_info(port) for port in (stream, _LAYER, *past))
    body.output.extend(map(value_info, outputs))
    kinds = tuple(_kinds(layers))
    places = {layer: place for kind in kinds for place, layer in enumerate(kind.layers)}
    listed = constant(whole, "visit/places", [places[layer] for layer in range(len(layers))])
    body.node.append(helper.make_node("Gather", [listed, _LAYER.name], [_PLACE]))
    _choose(whole, body, kinds, [stream.name, *unchanging, *(port.name for port in past)], outputs)
    return body


def _last(ports: tuple[Port, ...], count: int) -> tuple[Port, ...]:
    return ports[len(ports) - count :]


def _inside(port: Port) -> Port:
    return replace(port, name=f"visit/{port.name}")


def _kinds(layers: Sequence[onnx.GraphProto]) -> Iterator[_Kind]:
    """Layers together whose nodes are the same and whose weights have the same names and shapes."""
    found: dict[tuple[object, ...], list[int]] = {}
    for i, layer in enumerate(layers):
        weights = sorted((one.name, one.data_type, tuple(one.dims)) for one in layer.initializer)
        nodes = (node.SerializeToString(deterministic=True) for node in layer.node)
        found.setdefault((*nodes, *weights), []).append(i)
    for number, of_kind in enumerate(found.values()):
        yield _Kind(f"kind_{number}", tuple(of_kind), tuple(layers[i] for i in of_kind))


def _choose(
    whole: onnx.GraphProto, graph: onnx.GraphProto, kinds: Sequence[_Kind], inputs: list[str], outputs: Sequence[Port]
) -> None:
    """Add nodes that run the visit's layer, which is of one of `kinds`."""
    kind, *others = kinds
    names = [port.name for port in outputs]
    if not others:
        _run(whole, graph, kind, inputs, names)
        return
    num_layers = 1 + max(layer for one in kinds for layer in one.layers)
    listed = constant(whole, f"{kind.name}/layers", [i in kind.layers for i in range(num_layers)], np.bool_)
    graph.node.append(helper.make_node("Gather", [listed, _LAYER.name], [f"{kind.name}/is_it"]))
    branches = []
    for choice, some in (("then", [kind]), ("else", others)):
        made = [replace(port, name=f"{port.name}/{kind.name}/{choice}") for port in outputs]
        branch = onnx.GraphProto(name=f"{kind.name}/{choice}", output=map(value_info, made))
        _choose(whole, branch, some, inputs, made)
        branches.append(branch)
    then, otherwise = branches
    graph.node.append(helper.make_node("If", [f"{kind.name}/is_it"], names, then_branch=then, else_branch=otherwise))


def _run(whole: onnx.GraphProto, graph: onnx.GraphProto, kind: _Kind, inputs: list[str], outputs: list[str]) -> None:
    """Add the nodes of a kind, its weights in `whole`: what its layers have in common once, all else as stacks."""
    layer, *others = (_named(one, kind.name, inputs, outputs) for one in kind.graphs)
    stored = [{one.name: numpy_helper.to_array(one) for one in other.initializer} for other in others]
    for first in layer.initializer:
        arrays = [numpy_helper.to_array(first), *(one[first.name] for one in stored)]
        if all(np.array_equal(arrays[0], array) for array in arrays[1:]):
            whole.initializer.append(first)
            continue
        stack = f"{first.name}/stack"
        whole.initializer.append(numpy_helper.from_array(np.stack(arrays), stack))
        graph.node.append(helper.make_node("Gather", [stack, _PLACE], [first.name]))
    graph.node.extend(layer.node)


def _named(layer: onnx.GraphProto, name: str, inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    named = onnx.GraphProto()
    append(named, layer, name, inputs, outputs)
    return named
