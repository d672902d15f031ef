"""The parts of a stack of layers over plain tensors: no positions, no cache."""

import torch
from torch import Tensor, nn

from exporters.parts import BATCH, Part, Parts, Port
from models.layered import TensorStack


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


def split_stack(
    model: TensorStack, input_name: str, input_shape: tuple[int, ...], output_name: str, num_outputs: int
) -> Parts:
    """The parts of a stack with one input [B, *input_shape] and one output [B, num_outputs]."""
    inputs, outputs = Port(input_name, ("batch", *input_shape)), Port(output_name, ("batch", num_outputs))
    example = torch.randn(BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
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
        inputs=(inputs.spec(),),
        outputs=(outputs.spec(),),
    )
