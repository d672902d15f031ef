"""Somebody's files: what can be served is read from them, what cannot is named."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporters.adopt import adopt_file, parse_input
from models.artifact import TensorSpec, read_manifest
from models.errors import ArtifactError, InputError
from service.backends.open import open_backend

FLOAT = TensorProto.FLOAT


def shapes(specs: tuple[TensorSpec, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spec.name, spec.datatype, spec.shape) for spec in specs]


def save_onnx(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **more: Any) -> Path:
    opsets = [helper.make_opsetid("", 20), *more.pop("opsets", [])]
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, **more)
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def tensor(name: str, shape: list[Any] | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A product with a weight [4, 2] that is kept in the file."""
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "weight")
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    return save_onnx(
        tmp_path / "linear.onnx", [node], [tensor("x", ["n", 4])], [tensor("y", ["n", 2])], initializer=[weight]
    )


def script(tmp_path: Path, module: nn.Module) -> Path:
    torch.jit.save(torch.jit.script(module), tmp_path / "module.pt")
    return tmp_path / "module.pt"


def test_onnx_file_is_published_unchanged_with_what_it_says(linear: Path, tmp_path: Path) -> None:
    exported = adopt_file(linear, tmp_path / "repository", "mine")
    manifest = read_manifest(tmp_path / "repository" / "mine" / "1")
    assert manifest == exported.manifest
    assert shapes(manifest.inputs) == [("x", "FP32", (-1, 4))]
    assert shapes(manifest.outputs) == [("y", "FP32", (-1, 2))]
    assert manifest.num_layers == 0
    assert (exported.directory / "onnx" / "whole.onnx").read_bytes() == linear.read_bytes()


def test_weights_beside_the_file_come_along(linear: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    path = tmp_path / "big" / "model.onnx"
    onnx.save_model(
        onnx.load(str(linear)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    exported = adopt_file(path, tmp_path / "repository", "mine")
    assert sorted(exported.manifest.files) == ["onnx/weights.bin", "onnx/whole.onnx"]
    (path.parent / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"'weights\.bin', which is no data file beside it"):
        adopt_file(path, tmp_path / "other", "mine")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret"])
def test_weights_outside_the_folder_are_refused(linear: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    (tmp_path / "model").mkdir()
    model = onnx.load(str(linear))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="outside its own folder"):
        adopt_file(path, tmp_path / "repository", "mine")
    assert not (tmp_path / "repository").exists()


def test_custom_operators_are_named_even_inside_branches(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Magic", ["x"], ["z"], domain="my.ops")], "then", [], [tensor("z", ["n"])]
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["w"])], "else", [], [tensor("w", ["n"])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)
    path = save_onnx(
        tmp_path / "custom.onnx",
        [node],
        [tensor("x", ["n"]), tensor("flag", [], TensorProto.BOOL)],
        [tensor("y", ["n"])],
        opsets=[helper.make_opsetid("my.ops", 1)],
    )
    with pytest.raises(ArtifactError, match=r"my[.]ops::Magic"):
        adopt_file(path, tmp_path / "repository", "mine")


def test_output_without_a_shape_is_found_out_by_running(tmp_path: Path) -> None:
    # The runtime cannot infer the rank of a reshape whose target is computed from values.
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("NonZero", ["shape"], ["places"]),
        helper.make_node("Gather", ["shape", "places"], ["sizes"]),
        helper.make_node("Squeeze", ["sizes"], ["target"]),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    path = save_onnx(tmp_path / "rank.onnx", nodes, [tensor("x", ["n", "m", 4])], [tensor("y", None)])
    exported = adopt_file(path, tmp_path / "repository", "mine")
    assert shapes(exported.manifest.outputs) == [("y", "FP32", (-1, -1, 4))]


def test_output_that_does_not_follow_the_batch_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)
    path = save_onnx(tmp_path / "sum.onnx", [node], [tensor("x", ["n", 4])], [tensor("y", [1, 1])])
    with pytest.raises(
        ArtifactError, match=r"output 'y' has shapes .* the first axis of every output must be the batch"
    ):
        adopt_file(path, tmp_path / "repository", "mine")


def test_input_of_an_unserved_type_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    values = [tensor("x", ["n"], TensorProto.STRING)], [tensor("y", ["n"], TensorProto.STRING)]
    path = save_onnx(tmp_path / "text.onnx", [node], *values)
    with pytest.raises(ArtifactError, match=r"input 'x' is of type tensor\(string\)"):
        adopt_file(path, tmp_path / "repository", "mine")


@pytest.mark.parametrize(
    ("said", "reason"),
    [("x:FP32:-1,5", "the file FP32"), ("x:INT64:-1,4", "the file FP32"), ("z:FP32:-1", r"its inputs are \['x'\]")],
)
def test_saying_something_else_than_the_file_is_refused(linear: Path, tmp_path: Path, said: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        adopt_file(linear, tmp_path / "repository", "mine", given=[parse_input(said)])


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_garbage_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=str(path)):
        adopt_file(path, tmp_path / "repository", "mine")


def test_missing_file_and_unknown_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        adopt_file(tmp_path / "model.onnx", tmp_path, "mine")
    (tmp_path / "model.h5").write_text("")
    with pytest.raises(ArtifactError, match=r"none of \.onnx, \.pt, \.pth"):
        adopt_file(tmp_path / "model.h5", tmp_path, "mine")


class TwoHeads(nn.Module):
    def forward(self, ids: Tensor, weights: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return ids * 2, weights.sum(1, keepdim=True) * scale


def test_torchscript_outputs_are_found_out_by_running(tmp_path: Path) -> None:
    given = [parse_input("weights:FP32:-1,7"), parse_input("ids:INT64:-1,-1")]
    exported = adopt_file(script(tmp_path, TwoHeads()), tmp_path / "repository", "mine", given=given)
    assert shapes(exported.manifest.inputs) == [("ids", "INT64", (-1, -1)), ("weights", "FP32", (-1, 7))]
    assert shapes(exported.manifest.outputs) == [("output_0", "INT64", (-1, -1)), ("output_1", "FP32", (-1, 1))]
    assert read_manifest(exported.directory).forms["torchscript"].whole == "torchscript/whole.pt"


def test_traced_module_is_adopted(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Linear(4, 3), torch.zeros(2, 4))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, tmp_path / "linear.pt")
    exported = adopt_file(tmp_path / "linear.pt", tmp_path, "mine", given=[parse_input("input:FP32:-1,4")])
    assert shapes(exported.manifest.outputs) == [("output", "FP32", (-1, 3))]


class Doubled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


@pytest.mark.parametrize(("datatype", "dtype"), [("FP64", np.float64), ("FP16", np.float16), ("FP32", np.float32)])
def test_torchscript_takes_and_gives_the_numbers_it_was_made_for(datatype: str, dtype: Any, tmp_path: Path) -> None:
    given = [parse_input(f"{name}:{datatype}:-1,2") for name in ("x", "scale")]
    exported = adopt_file(script(tmp_path, Doubled()), tmp_path / "repository", "mine", given=given)
    assert [spec.datatype for spec in exported.manifest.outputs] == [datatype]
    backend = open_backend(exported.manifest, exported.directory, "torchscript")
    x = np.asarray([[1 / 3, 2.0]], dtype)
    (found,) = backend.head(backend.embed({"x": x, "scale": x})).values()
    assert found.dtype == dtype
    assert np.array_equal(found, x * x)


def test_torchscript_input_that_nobody_describes_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="input 'weights'; add --input weights:FP32:-1,64"):
        adopt_file(
            script(tmp_path, TwoHeads()), tmp_path / "repository", "mine", given=[parse_input("ids:INT64:-1,-1")]
        )


def test_torchscript_that_does_not_run_on_what_was_said_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not run on zeros of input \[2, 9\]"):
        adopt_file(script(tmp_path, nn.Linear(4, 3)), tmp_path, "mine", given=[parse_input("input:FP32:-1,9")])


def test_pickled_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ArtifactError, match=r"no TorchScript file.*torch.jit.save"):
        adopt_file(tmp_path / "model.pt", tmp_path / "repository", "mine")


@pytest.mark.parametrize("text", ["x", "x:FP32", "x:float:-1", "x:FP32:a", ":FP32:1", "x:FP32:-1,0", "x:FP32:-2"])
def test_unreadable_input_description_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no input|below 1"):
        parse_input(text)
