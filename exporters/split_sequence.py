"""The parts of a recurrent stack: the state of a visit goes in and comes out of every layer."""

import torch
from torch import Tensor, nn

from exporters.parts import BATCH, LENGTH, Part, Parts, Port, Tensors, as_tuple
from models.artifact import SequenceSpec, TensorSpec
from models.layered import SequenceStack

# Steps before the examples, so that their states are ones that occur.
_BEFORE = 3


class WholeSequence(nn.Module):
    """One pass over the full chain of a recurrent model, the states of all visits in and out, as one graph."""

    def __init__(self, model: SequenceStack) -> None:
        super().__init__()
        self.embed, self.layers, self.head = model.embed, model.layers, model.head

    def forward(self, steps: Tensor, *states: Tensor) -> Tensors:
        """Steps [B, T, ...] and states, each [L, B, ...], to outputs [B, T, C] and the states after them."""
        hidden, after = self.embed(steps), []
        for i, layer in enumerate(self.layers):
            hidden, *state = layer(hidden, *(stack[i] for stack in states))
            after.append(state)
        return self.head(hidden), *(torch.stack(tensors) for tensors in zip(*after, strict=True))


def split_sequence(model: SequenceStack, given: TensorSpec, made: TensorSpec) -> Parts:
    """The parts of `model`; the states of the whole graph are stacked over the layers.

    A state comes out under its own name and `_out`.
    """
    sequence = SequenceSpec(
        max_chunk=model.max_chunk, max_trained=model.max_trained, vocab_size=model.vocab_size, state=model.state
    )
    num_layers = len(model.layers)
    steps = Port(given.name, ("batch", "length", *given.shape[2:]), given.datatype)
    outputs = Port(made.name, ("batch", "length", *made.shape[2:]), made.datatype)
    example = _example(given, model.vocab_size)
    whole = WholeSequence(model).eval()
    states = _states(model, example)
    with torch.no_grad():
        stream = model.embed(example)
    hidden = Port("hidden", ("batch", "length", *stream.shape[2:]))
    taken = tuple(Port(spec.name, ("batch", *spec.shape[1:]), spec.datatype) for spec in model.state)
    all_taken = tuple(Port(port.name, (num_layers, *port.dims), port.datatype) for port in taken)
    layer_inputs, layer_outputs = (hidden, *taken), (Port("hidden_out", hidden.dims), *map(_after, taken))
    return Parts(
        Part("embed", model.embed, (steps,), (hidden,), (example,)),
        tuple(
            Part(f"layer_{i:03}", layer, layer_inputs, layer_outputs, (stream, *(tensor[i] for tensor in states)))
            for i, layer in enumerate(model.layers)
        ),
        Part("head", model.head, (hidden,), (outputs,), (stream,)),
        Part("whole", whole, (steps, *all_taken), (outputs, *map(_after, all_taken)), (example, *states)),
        inputs=(given,),
        outputs=(made,),
        sequence=sequence,
    )


def _after(port: Port) -> Port:
    return Port(f"{port.name}_out", port.dims, port.datatype)


def _states(model: SequenceStack, example: Tensor) -> Tensors:
    """States [L, B, ...] of every layer after the first steps of the examples."""
    with torch.no_grad():
        hidden, after = model.embed(example[:, :_BEFORE]), []
        for layer in model.layers:
            hidden, *state = as_tuple(layer(hidden, *model.empty_state(BATCH)))
            after.append(state)
    return tuple(torch.stack(tensors) for tensors in zip(*after, strict=True))


def _example(spec: TensorSpec, vocab_size: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    if vocab_size:
        return torch.randint(vocab_size, (BATCH, LENGTH), generator=random)
    return torch.randn(BATCH, LENGTH, *spec.shape[2:], generator=random)
