"""A model as its parts: embed, each layer, head and the whole, with fixed names, shapes and example inputs.

Knows no file format and no runtime.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.artifact import SequenceSpec, TensorSpec
from models.datatype import Datatype
from models.lm.mlp import Experts

Tensors: TypeAlias = tuple[Tensor, ...]
Run: TypeAlias = Callable[..., Tensors]

# Sizes of the example inputs: all different and none 0 or 1, so that no exporter takes two axes for one or fixes one.
BATCH, LENGTH, PAST = 2, 5, 3


@dataclass(frozen=True, slots=True)
class Port:
    """A named input or output of a part; each dimension is a size or the name of a dynamic axis."""

    name: str
    dims: tuple[int | str, ...]
    datatype: Datatype = "FP32"

    def spec(self) -> TensorSpec:
        """What the manifest says of it."""
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in self.dims)
        return TensorSpec(name=self.name, datatype=self.datatype, shape=shape)


@dataclass(frozen=True, slots=True)
class Part:
    """One graph to export: a module with what goes in and comes out, in order."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    examples: Tensors

    def __call__(self, *inputs: Tensor) -> Tensors:
        """Run the module in eager torch, recording nothing."""
        with torch.inference_mode():
            return as_tuple(self.module(*inputs))


@dataclass(frozen=True, slots=True)
class Parts:
    """All graphs of one model; `inputs` and `outputs` are what a server shows of it.

    Of an encoder also text_sizes, its vocabulary and longest text, and its reach, how far tokens see where not all do.
    Of a recurrent model what a visit takes in and gives out as its state.
    A network without layers is served whole: the whole graph is all that is written of it.
    """

    embed: Part
    layers: tuple[Part, ...]
    head: Part
    whole: Part
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    text_sizes: tuple[int, int] | None = None
    reach: int = 0
    sequence: SequenceSpec | None = None

    @property
    def cached(self) -> bool:
        """Whether layers take and give keys and values, as a language model's do."""
        return self.sequence is None and len(self.whole.outputs) > 1

    @property
    def num_kept(self) -> int:
        """How many tensors a visit takes and gives last: keys and values, or a state. The whole has them stacked."""
        return len(self.whole.outputs) - 1

    @property
    def kept(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """These tensors as the whole takes them in, and as it gives them out."""
        return self.whole.inputs[len(self.whole.inputs) - self.num_kept :], self.whole.outputs[1:]

    def __iter__(self) -> Iterator[Part]:
        yield from (self.embed, *self.layers, self.head, self.whole) if self.layers else (self.whole,)


@dataclass(frozen=True, slots=True)
class Runs:
    """The loaded files of one exported form as callables, torch tensors in and out; no `whole` where none is stored.

    Of a network that is served whole there is nothing but that.
    """

    embed: Run
    layers: tuple[Run, ...]
    head: Run
    whole: Run | None

    @classmethod
    def of_whole(cls, run: Run) -> "Runs":
        """A network without layers."""
        return cls(lambda *inputs: inputs, (), run, run)


def visit_cost(layer: nn.Module) -> int:
    """Multiply-accumulates of one visit for one row (one token), counted from the weights a token meets."""
    linear = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    return linear + sum(module.num_active_weights for module in layer.modules() if isinstance(module, Experts))


def row_cost(part: Part) -> int:
    """Multiply-accumulates of linear maps and convolutions in one visit by one row, counted as the example runs."""
    with FlopCounterMode(display=False) as counter:
        part(*part.examples)
    return int(counter.get_total_flops()) // 2 // len(part.examples[0])


def step_cost(part: Part) -> int:
    """`row_cost` of a single step of a sequence."""
    hidden, *state = part.examples
    return row_cost(replace(part, examples=(hidden[:, :1], *state)))


def per_parameter(module: nn.Module, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry for each of a module's inputs, as one for each parameter of `forward`: those of `*inputs` are one."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    return row if named == len(parameters) else (*row[:named], row[named:])


def as_tuple(outputs: Any) -> Tensors:
    """What a module returned, always as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
