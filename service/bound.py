"""A function or a torch module with what it takes and gives: a model of this process, without files."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from models.artifact import LayersSpec, Manifest, SequenceSpec, TensorSpec
from models.errors import InputError
from models.probe import Array, probe, spec
from service.backends.arrays import Arrays, HostArrays
from service.backends.function import Function, listed, open_function
from service.backends.parts import Parts, TensorBackend
from service.backends.protocol import Backend
from service.backends.sequences import SequenceBackend

# By name: a datatype of the Open Inference Protocol, and a shape whose first axis is the batch; -1 is any size.
Tensors: TypeAlias = Mapping[str, tuple[str, Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Bound:
    """A model of this process. `function` is the whole of it; a stack of layers is run by its parts instead."""

    model: Any
    function: Function
    layers: LayersSpec | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version: str
    sequence: SequenceSpec | None = None

    @property
    def name(self) -> str:
        """What the function or the module's class is called."""
        return str(getattr(self.model, "__name__", type(self.model).__name__))

    @property
    def is_module(self) -> bool:
        return is_module(self.model)

    def manifest(self, name: str) -> Manifest:
        """The manifest under that name. Raises InputError if it or the version is no name."""
        try:
            return Manifest(
                name=name,
                version=self.version,
                kind="sequence" if self.sequence else "tensor",
                inputs=self.inputs,
                outputs=self.outputs,
                layers=self.layers,
                sequence=self.sequence,
                forms={},
                files={},
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"model {name!r}, {first['loc'][0]} {first['input']!r}: {first['msg']}") from error

    def open(self, name: str) -> Backend:
        """A backend that runs it."""
        parts: Parts
        arrays: Arrays
        if self.layers is None:
            parts, arrays = open_function(name, self.function, self.outputs), HostArrays()
        else:
            from service.backends.module import open_layered

            parts, arrays = open_layered(name, self.model)
        if self.sequence:
            return SequenceBackend(parts, self.sequence, self.outputs, arrays)
        return TensorBackend(parts, self.inputs, self.outputs, arrays)


def bind(model: Any, inputs: Tensors, outputs: Tensors | None = None, version: str = "1") -> Bound:
    """Say what a function or torch module takes, as `{"x": ("FP32", [-1, 3])}`; it is called with whole batches.

    A function gets numpy arrays [B, ...] in the order of `inputs` and returns new ones: one, a tuple or a named dict.
    A module gets tensors on its parameters' device and is put into evaluation mode. Without `outputs` the model is run
    on zeros of two sizes to find them. Raises InputError or ArtifactError if it cannot be served.
    """
    if not callable(model) or inspect.iscoroutinefunction(model) or inspect.isclass(model):
        raise InputError(f"{model!r:.60} is no plain function or module; bind one that takes arrays and returns arrays")
    takes = _specs("input", inputs)
    function, layers, sequence = _opened(model)
    gives = _found(function, takes) if outputs is None else _specs("output", outputs)
    return Bound(model, function, layers, takes, gives, version, sequence)


def is_module(model: object) -> bool:
    """Whether it is a torch module; whoever has one has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _opened(model: Any) -> tuple[Function, LayersSpec | None, SequenceSpec | None]:
    if not is_module(model):
        return model, None, None
    from service.backends.module import function_of, layers_of, sequence_of

    return function_of(model), layers_of(model), sequence_of(model)


def _specs(what: str, told: Tensors) -> tuple[TensorSpec, ...]:
    if not told:
        raise InputError(f"no {what}s were named; name them like {{'x': ('FP32', [-1, 3])}}")
    return tuple(_spec(what, name, said) for name, said in told.items())


def _spec(what: str, name: str, said: object) -> TensorSpec:
    match said:
        case (str(datatype), [*sizes]):
            shape = [size for size in sizes if isinstance(size, int) and (size > 0 or size == -1)]
            if len(shape) == len(sizes):
                return spec(f"{what} {name!r}", name, datatype, shape)
    raise InputError(f"{what} {name!r} is {said!r:.60}; write a datatype and a shape, like ('FP32', [-1, 3])")


def _found(function: Function, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The outputs, by running; with the names the function gives them, if it does."""
    names: list[str] = []

    def call(arrays: Sequence[Array]) -> Sequence[Array]:
        given = function(*arrays)
        if isinstance(given, Mapping) and not names:
            names.extend(given)
        return listed(given, names or None)

    found = probe(call, inputs, remedy="correct the inputs, or declare the outputs")
    if not names:
        return found
    return tuple(one.model_copy(update={"name": name}) for one, name in zip(found, names, strict=True))
