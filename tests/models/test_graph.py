"""Graphs set one after the other: the parts' nodes in order, weights of a part that comes twice once."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from models.graph import chain


def part(input: str, output: str, weight: float) -> onnx.ModelProto:
    """Multiply and subtract, names as an exporter repeats them in every part."""
    scale = numpy_helper.from_array(np.full(1000, weight, np.float32), "scale")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    nodes = [
        helper.make_node("Mul", [input, "scale"], ["product"], name="node_0"),
        helper.make_node("Sub", ["product", "one"], [output], name="node_1"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1000]) for name in (input, output)]
    graph = helper.make_graph(nodes, "part", values[:1], values[1:], [scale, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, features: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {session.get_inputs()[0].name: features})[0]
    return answer


def test_parts_are_run_in_order_and_names_that_all_of_them_have_do_not_collide() -> None:
    embed, first, second, head = (
        part("features", "hidden", 2),
        part("h", "h_out", 3),
        part("h", "h_out", 5),
        part("h", "y", 7),
    )
    model = chain([embed, second, first, second, head])
    onnx.checker.check_model(model, full_check=True)
    features = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    wanted = features
    for weight in (2, 5, 3, 5, 7):
        wanted = wanted * np.float32(weight) - np.float32(1)
    assert np.array_equal(run(model, features), wanted)
    assert [value.name for value in model.graph.input] == ["features"]


def test_weights_of_a_part_that_comes_often_are_there_once() -> None:
    embed, layer, head = part("features", "hidden", 2), part("h", "h_out", 3), part("h", "y", 7)
    once, often = chain([embed, layer, head]), chain([embed, *[layer] * 5, head])
    assert len(often.graph.node) - len(once.graph.node) == 8
    assert len(often.graph.initializer) == len(once.graph.initializer)


def test_parts_stay_as_they_were() -> None:
    parts = [part("features", "hidden", 2), part("h", "h_out", 3)]
    before = [one.SerializeToString() for one in parts]
    chain(parts)
    assert [one.SerializeToString() for one in parts] == before
