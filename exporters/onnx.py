"""Parts to ONNX files and back as ONNX Runtime sessions.

Knows nothing of chains or manifests. Layers have one shape or few, so that the first of each is converted and the
others take its graph with their own weights; the whole graph is the parts, joined.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.export import Dim
from torch.onnx.errors import OnnxExporterError

from exporters import rotary
from exporters.join import join
from exporters.parts import Part, Parts, Port, Run, Runs, Tensors, per_parameter
from models.errors import ArtifactError

SUFFIX = ".onnx"
# Weights beside a graph, from so many bytes on: runtimes can map such a file and share its pages, and one file of
# more than 2 GiB is no ONNX. The whole graph reads the files of the parts.
DATA_SUFFIX = ".data"
LARGE_BYTES = 16 << 20
# 23 has native attention and RMS norm, nearly twice as fast; 20 is the exporter's own default.
OPSETS = (23, 20)


def write(parts: Parts, folder: Path) -> Iterator[str]:
    """Write every part and the whole into `folder`, yielding each file's name. Raises ArtifactError naming the part."""
    if not parts.layers:
        graph = _finish(parts.whole, _convert_newest((parts.whole,))[0])
        yield save(graph, folder / file(parts.whole))
        return
    # All three at one opset.
    embed, first, head = _convert_newest((parts.embed, parts.layers[0], parts.head))
    opset = first.opset_import[0].version
    graphs = [_finish(parts.embed, embed)]
    yield save(graphs[-1], folder / file(parts.embed))
    converted = [(parts.layers[0], first)]
    for part in parts.layers:
        graphs.append(_layer_graph(part, converted, opset))
        yield save(graphs[-1], folder / file(part))
    graphs.append(_finish(parts.head, head))
    yield save(graphs[-1], folder / file(parts.head))
    yield save(join(parts, graphs), folder / file(parts.whole))
    onnx.checker.check_model(folder / file(parts.whole))


@contextmanager
def written(parts: Parts, folder: Path) -> Iterator[Path]:
    """Where the files are: in `folder`, or where there is none written anew for as long as they are looked at.

    Raises ArtifactError as `write` does.
    """
    if folder.is_dir():
        yield folder
        return
    with TemporaryDirectory() as fresh:
        for _ in write(parts, Path(fresh)):
            pass
        yield Path(fresh)


def load(folder: Path, num_layers: int) -> Runs:
    """Open the files as a server does. Raises the runtime's own errors."""
    if not num_layers:
        return Runs.of_whole(open_run(folder / f"whole{SUFFIX}"))
    names = [f"layer_{i:03}" for i in range(num_layers)]
    embed, head, whole, *layers = (open_run(folder / f"{name}{SUFFIX}") for name in ("embed", "head", "whole", *names))
    return Runs(embed, tuple(layers), head, whole)


def _convert_newest(wanted: Sequence[Part]) -> list[onnx.ModelProto]:
    """Parts, not yet optimised, all at the newest opset that every one of them has."""
    try:
        return [_convert(part, OPSETS[0]) for part in wanted]
    except OnnxExporterError:
        return [_convert_or_refuse(part, OPSETS[1]) for part in wanted]


def _layer_graph(part: Part, converted: list[tuple[Part, onnx.ModelProto]], opset: int) -> onnx.ModelProto:
    """The graph of one layer: an earlier layer's with other weights where that is right, or else its own."""
    for earlier, graph in converted:
        swapped = _with_weights(graph, earlier, part)
        if swapped is not None:
            finished = _finish(part, swapped)
            if _agrees(part, finished):
                return finished
    graph = _convert_or_refuse(part, opset)
    converted.append((part, graph))
    return _finish(part, onnx.ModelProto.FromString(graph.SerializeToString()))


def _convert_or_refuse(part: Part, opset: int) -> onnx.ModelProto:
    try:
        return _convert(part, opset)
    except OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]  # the rest is advice to the exporter's developers
        raise ArtifactError(f"{part.name} has no ONNX form at opset {opset}: {reason}") from error


def _convert(part: Part, opset: int) -> onnx.ModelProto:
    axes: tuple[Any, ...] = tuple(
        {i: Dim.AUTO for i, dim in enumerate(port.dims) if isinstance(dim, str)} for port in part.inputs
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            part.examples,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=per_parameter(part.module, axes),
            input_names=[port.name for port in part.inputs],
            output_names=[port.name for port in part.outputs],
            optimize=False,  # keeps the weights under their own names, which is what `_with_weights` goes by
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    if graph.opset_import[0].version != opset:
        raise OnnxExporterError(f"{part.name} came out at opset {graph.opset_import[0].version}, not {opset}")
    return graph


def _with_weights(graph: onnx.ModelProto, first: Part, part: Part) -> onnx.ModelProto | None:
    """The first layer's graph with another layer's weights; None if their names or shapes differ."""
    old, new = first.module.state_dict(), part.module.state_dict()
    stored = {tensor.name for tensor in graph.graph.initializer}
    same_shapes = {name: tensor.shape for name, tensor in old.items()} == {name: t.shape for name, t in new.items()}
    if not same_shapes or not old.keys() <= stored:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name].numpy(), tensor.name))
    return copy


def _finish(part: Part, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Optimise, give the axes readable names and drop the exporter's notes, which hold paths of the machine."""
    graph = rotary.optimize(graph)
    for value, port in zip((*graph.graph.input, *graph.graph.output), (*part.inputs, *part.outputs), strict=True):
        _name_axes(part, value, port)
    del graph.graph.value_info[:], graph.metadata_props[:], graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return graph


def _name_axes(part: Part, value: onnx.ValueInfoProto, port: Port) -> None:
    """Raises ArtifactError if the exporter fixed an axis that must stay dynamic."""
    for dim, wanted in zip(value.type.tensor_type.shape.dim, port.dims, strict=True):
        if isinstance(wanted, int):
            continue
        if dim.HasField("dim_value"):
            raise ArtifactError(
                f"{part.name}: the exporter fixed axis {wanted!r} of {port.name!r} to {dim.dim_value}; "
                "the module must not branch on a shape"
            )
        dim.dim_param = wanted


def _agrees(part: Part, graph: onnx.ModelProto) -> bool:
    try:
        outputs = _run(_session(graph.SerializeToString()), part.examples)
    except Exception:  # the runtime's errors share no class; the layer's own graph is tried next, and verified
        return False
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, part(*part.examples), strict=True))


def save(graph: onnx.ModelProto, path: Path) -> str:
    """Write a graph, large weights beside it, and return the file's name; `graph` then refers to what is beside it."""
    if sum(len(tensor.raw_data) for tensor in graph.graph.initializer) < LARGE_BYTES:
        onnx.save_model(graph, path)
    else:
        onnx.save_model(graph, path, save_as_external_data=True, location=f"{path.name}{DATA_SUFFIX}")
    return path.name


def file(part: Part) -> str:
    """The name of a part's file."""
    return f"{part.name}{SUFFIX}"


def open_run(path: Path) -> Run:
    """One file as a callable, as a server opens it. Raises the runtime's own errors."""
    session = _session(str(path))
    return lambda *inputs: _run(session, inputs)


def _session(model: str | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, inputs: Sequence[Tensor]) -> Tensors:
    names = [entry.name for entry in session.get_inputs()]
    arrays = (tensor.numpy() for tensor in inputs)
    return tuple(torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True))))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own insides and on packages it does not need from the user."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)
