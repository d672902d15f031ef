"""ONNX graphs set one after the other in one graph. Knows names and nodes, and no model."""

from collections.abc import Callable, Sequence

import onnx
from onnx import helper


def append(
    whole: onnx.GraphProto,
    part: onnx.GraphProto,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: str | None = None,
) -> None:
    """Add a part's nodes and weights, its inputs and outputs bound to names of the whole graph.

    What else it has is called `name`/..., its weights `weights`/... if that is given: of a part that is added twice
    they are there once. The nodes stay as they are, so that the whole computes what the parts compute in turn.
    """
    bound = dict(zip((value.name for value in (*part.input, *part.output)), (*inputs, *outputs), strict=True))
    bound |= {weight.name: f"{weights or name}/{weight.name}" for weight in part.initializer}
    copy = onnx.GraphProto()
    copy.CopyFrom(part)
    _rename(copy, lambda old: bound.get(old, f"{name}/{old}") if old else "")  # "" is an input left out
    whole.node.extend(copy.node)
    known = {weight.name for weight in whole.initializer}
    whole.initializer.extend(weight for weight in copy.initializer if weight.name not in known)


def chain(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Parts of one opset, each taking first what the one before gives out first, as one graph; some may be the same.

    The other inputs and outputs of the parts are the whole's, in their order, behind its own.
    """
    whole, kinds = onnx.GraphProto(name="chain"), {id(part): f"part/{place}" for place, part in enumerate(parts)}
    outputs, beside = list[onnx.ValueInfoProto](), list[onnx.ValueInfoProto]()
    for place, part in enumerate(parts):
        inputs = [_named(value, f"{place}/{value.name}" if place else value.name) for value in part.graph.input]
        whole.input.extend(inputs[1:] if place else inputs)
        taken = [value.name for value in (*outputs[:1], *inputs[len(outputs[:1]) :])]
        outputs = [_named(value, f"{place}/{value.name}") for value in part.graph.output]
        append(whole, part.graph, f"{place}", taken, [value.name for value in outputs], weights=kinds[id(part)])
        beside += outputs[1:]
    whole.output.extend([*outputs[:1], *beside])
    return as_model(whole, parts[0])


def as_model(graph: onnx.GraphProto, part: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of the same opset, IR version and producer as one of its parts."""
    model = helper.make_model(graph, opset_imports=part.opset_import, ir_version=part.ir_version)
    model.producer_name, model.producer_version = part.producer_name, part.producer_version
    return model


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


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
