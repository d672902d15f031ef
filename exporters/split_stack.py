"""The parts of a stack of layers over plain tensors: no positions, no cache."""

import torch
from torch import Tensor, nn

from exporters.parts import BATCH, Part, Parts, Port
from models.artifact import TensorSpec
from models.layered import TensorStack, Whole


class WholeStack(nn.Module):
    """The full chain of a tensor model with one input, as one graph."""

    def __init__(self, model: TensorStack) -> None:
        super().__init__()
        self.embed, self.layers, self.head = model.embed, model.layers, model.head

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, ...] -> outputs [B, ...]"""
        hidden = self.embed(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        outputs: Tensor = self.head(hidden)
        return outputs


def split_stack(model: TensorStack, given: TensorSpec, made: TensorSpec) -> Parts:
    """The parts of a stack with one input and one output."""
    inputs, outputs = _port(given), _port(made)
    example = _example(given)
    with torch.no_grad():
        stream = model.embed(example)
    hidden = Port("hidden", ("batch", *stream.shape[1:]))
    hidden_out = Port("hidden_out", hidden.dims)
    return Parts(
        Part("embed", model.embed, (inputs,), (hidden,), (example,)),
        tuple(
            Part(f"layer_{i:03}", layer, (hidden,), (hidden_out,), (stream,)) for i, layer in enumerate(model.layers)
        ),
        Part("head", model.head, (hidden,), (outputs,), (stream,)),
        Part("whole", WholeStack(model).eval(), (inputs,), (outputs,), (example,)),
        inputs=(given,),
        outputs=(made,),
    )


def split_whole(model: Whole, given: TensorSpec, made: TensorSpec) -> Parts:
    """The one part of a network without layers, with one input and one output."""
    inputs, outputs, example = _port(given), _port(made), _example(given)
    whole = Part("whole", model, (inputs,), (outputs,), (example,))
    return Parts(
        Part("embed", model.embed, (inputs,), (inputs,), (example,)),
        (),
        Part("head", model.head, (outputs,), (outputs,), (example,)),
        whole,
        inputs=(given,),
        outputs=(made,),
    )


def _port(spec: TensorSpec) -> Port:
    return Port(spec.name, ("batch", *spec.shape[1:]), spec.datatype)


def _example(spec: TensorSpec) -> Tensor:
    return torch.randn(BATCH, *spec.shape[1:], generator=torch.Generator().manual_seed(0))
