"""A foreign ONNX file: its inputs and outputs, and a copy with the data files it names."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from exporters.probe import REMEDY, completed, refuse_strangers
from models.artifact import TensorSpec
from models.errors import ArtifactError
from models.probe import Array, probe, spec

NAME = "whole.onnx"
# Operators that a plain ONNX Runtime brings along.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}


def signature(file: Path, given: Mapping[str, TensorSpec]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs. Raises ArtifactError if the runtime cannot load the file, InputError from `completed`."""
    model = _read(file)
    _data_files(file, model)
    _refuse_operators(file, model)
    session = _open(file)
    ranked = {
        value.name for value in (*model.graph.input, *model.graph.output) if value.type.tensor_type.HasField("shape")
    }
    entries = session.get_inputs()
    refuse_strangers(given, [entry.name for entry in entries])
    inputs = tuple(completed(e.name, _datatype(e), _shape(e, ranked), given) for e in entries)
    return inputs, _outputs(session, inputs, ranked)


def copy(file: Path, folder: Path) -> str:
    """Copy the file and the data files it names; returns the graph's name in `folder`."""
    for location in _data_files(file, _read(file)):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.parent / location, folder / location)
    shutil.copyfile(file, folder / NAME)
    return NAME


def _read(file: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(str(file), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public name
        raise ArtifactError(f"{file} is no ONNX file: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{file} has no graph; export it again")
    return model


def _data_files(file: Path, model: onnx.ModelProto) -> list[str]:
    """Where weights are kept outside the file. Raises ArtifactError for a place that is missing or not beside it."""
    folder = file.parent.resolve()
    locations = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    for location in sorted(locations):
        path = (folder / location).resolve()
        if not path.is_relative_to(folder) or Path(location).is_absolute():
            raise ArtifactError(
                f"{file} keeps weights in {location!r}, outside its own folder; save it with them inside"
            )
        if not path.is_file() or location == NAME:
            raise ArtifactError(f"{file} keeps weights in {location!r}, which is no data file beside it; copy it there")
    return sorted(locations)


def _refuse_operators(file: Path, model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    nodes = [*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node))]
    strange = {
        f"{n.domain}::{n.op_type}" for n in nodes if n.domain not in _DOMAINS and (n.domain, n.op_type) not in local
    }
    if strange:
        raise ArtifactError(
            f"{file} uses the custom operators {sorted(strange)[:10]}, which ONNX Runtime does not bring; "
            "export it with standard operators"
        )


def _open(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no base class
        raise ArtifactError(f"ONNX Runtime does not load {file}: {error}") from error


def _outputs(session: ort.InferenceSession, inputs: tuple[TensorSpec, ...], ranked: set[str]) -> tuple[TensorSpec, ...]:
    """As declared; found out by running where a shape is missing or its first axis does not follow the batch."""
    entries = session.get_outputs()
    shapes = [_shape(entry, ranked) for entry in entries]
    dynamic = any(entry.shape[0] == -1 for entry in inputs)
    if any(shape is None or (dynamic and shape[:1] != (-1,)) for shape in shapes):

        def call(arrays: Sequence[Array]) -> list[Array]:
            names = (entry.name for entry in inputs)
            outputs: list[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
            return outputs

        return probe(call, inputs, [entry.name for entry in entries], REMEDY)
    named = zip(entries, shapes, strict=True)
    return tuple(spec(f"output {e.name!r}", e.name, _datatype(e), shape) for e, shape in named)


def _datatype(entry: ort.NodeArg) -> str:
    runtime_type: str = entry.type
    return _DATATYPES.get(runtime_type, runtime_type)


def _shape(entry: ort.NodeArg, ranked: set[str]) -> tuple[int, ...] | None:
    """-1 for symbols; None where neither the file nor the runtime knows how many axes there are."""
    if not entry.shape and entry.name not in ranked:
        return None
    return tuple(dim if isinstance(dim, int) else -1 for dim in entry.shape)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the file, inner graphs and constants included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
