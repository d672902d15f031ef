"""Parts to files of torch.export and back: graphs that need no source code of the model. Knows no manifest."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from exporters.parts import Part, Run, Runs, Tensors, as_tuple, per_parameter
from models.errors import ArtifactError

SUFFIX = ".pt2"
# Where in the model's source a node came from.
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def write(parts: Iterable[Part], folder: Path) -> Iterator[str]:
    """Write every part and the whole into `folder`, yielding each file's name. Raises ArtifactError naming the part."""
    traced: list[tuple[Part, ExportedProgram]] = []
    for part in parts:
        name = f"{part.name}{SUFFIX}"
        with quiet():
            save(_graph(part, traced), folder / name)
        yield name


def load(folder: Path, num_layers: int) -> Runs:
    """Load the files as a server does. Raises the runtime's own errors."""
    if not num_layers:
        return Runs.of_whole(open_run(folder / f"whole{SUFFIX}"))
    names = [f"layer_{i:03}" for i in range(num_layers)]
    embed, head, whole, *layers = (open_run(folder / f"{name}{SUFFIX}") for name in ("embed", "head", "whole", *names))
    return Runs(embed, tuple(layers), head, whole)


def program(part: Part) -> ExportedProgram:
    """A part as a graph whose named axes are dynamic. Raises ArtifactError naming the part."""
    axes = tuple({i: Dim.AUTO for i, dim in enumerate(port.dims) if isinstance(dim, str)} for port in part.inputs)
    shapes = per_parameter(part.module, axes)
    try:
        with torch.no_grad():
            return torch.export.export(part.module, part.examples, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the exporter's errors share no class
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{part.name} has no form of torch.export: {reason}") from error


def _graph(part: Part, traced: list[tuple[Part, ExportedProgram]]) -> ExportedProgram:
    """The graph of an earlier part with other weights where that is right, or else its own: tracing takes seconds."""
    for earlier, graph in traced:
        if _becomes(graph, earlier, part):
            return graph
    traced.append((part, program(part)))
    return traced[-1][1]


def _becomes(graph: ExportedProgram, earlier: Part, part: Part) -> bool:
    """Give a graph the weights of another part, if their names and shapes are the same: does it compute that part?"""
    weights = part.module.state_dict(keep_vars=True)
    is_alike = (earlier.inputs, earlier.outputs) == (part.inputs, part.outputs)
    if not is_alike or _shapes(graph.state_dict) != _shapes(weights):
        return False
    graph.state_dict.update(weights)
    with torch.inference_mode():
        outputs = as_tuple(graph.module(check_guards=False)(*part.examples))
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, part(*part.examples), strict=True))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def save(program: ExportedProgram, path: Path) -> None:
    """Write a graph without the exporter's notes, which hold paths of the machine, and without its example inputs.

    Every weight is stored by itself.
    """
    for node in program.graph.nodes:
        for note in _NOTES:
            node.meta.pop(note, None)
    program.example_inputs = None
    for name, tensor in program.state_dict.items():
        if tensor.untyped_storage().nbytes() > tensor.nbytes:  # a slice, such as of a fused matrix
            own = tensor.detach().clone()
            program.state_dict[name] = nn.Parameter(own, False) if isinstance(tensor, nn.Parameter) else own
    torch.export.save(program, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own insides from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        yield


def open_run(path: Path) -> Run:
    """One file as a callable, as a server opens it. Raises the runtime's own errors."""
    # The guards hold sizes to those that an example of two rows stands for; `exporters.verify` runs others.
    module = torch.export.load(path).module(check_guards=False)

    def run(*inputs: torch.Tensor) -> Tensors:
        with torch.inference_mode():
            return as_tuple(module(*inputs))

    return run
