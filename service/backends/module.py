"""Somebody's torch module as a model, where its parameters are: whole, or in parts where it is a stack of layers."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from models.artifact import LayersSpec, SequenceSpec
from models.errors import InputError
from models.layered import LayeredModel, SequenceStack, num_parameters
from service.backends.arrays import Arrays
from service.backends.function import Function, guarded
from service.backends.parts import Parts
from service.backends.torch_arrays import TorchArrays, module_part


def layers_of(module: nn.Module) -> LayersSpec | None:
    """The stack of a layered model, if there is one, a visit's cost counted in weights.

    Raises InputError for a language model.
    """
    if not isinstance(module, LayeredModel) or not module.layers:
        return None
    if module.kind not in ("tensor", "sequence"):
        raise InputError(f"{type(module).__name__} is a language model; export it with 'fathom export' and serve that")
    cost = tuple(num_parameters(layer) for layer in module.layers)
    return LayersSpec(count=len(cost), residual_form=module.residual_form, cost=cost)


def sequence_of(module: nn.Module) -> SequenceSpec | None:
    """What a server needs to know of a recurrent stack."""
    if not isinstance(module, SequenceStack):
        return None
    return SequenceSpec(
        max_chunk=module.max_chunk, max_trained=module.max_trained, vocab_size=module.vocab_size, state=module.state
    )


def function_of(module: nn.Module) -> Function:
    """The whole module in evaluation mode, host arrays in and out."""
    module.eval()  # dropout and batch statistics would let the neighbours in a batch change an answer
    arrays = _arrays(module)

    def call(*inputs: Any) -> Any:
        with torch.no_grad():
            return _given_out(module(*map(arrays.take_in, inputs)), arrays)

    return call


def open_layered(name: str, module: LayeredModel) -> tuple[Parts, Arrays]:
    """The parts of a stack of layers in evaluation mode, and what keeps their arrays."""
    module.eval()
    embed, *layers, head = (guarded(name, module_part(part)) for part in (module.embed, *module.layers, module.head))
    return Parts(embed, tuple(layers), head), _arrays(module)


def _arrays(module: nn.Module) -> TorchArrays:
    held = next(chain(module.parameters(), module.buffers()), None)
    return TorchArrays(torch.device("cpu") if held is None else held.device)


def _given_out(outputs: Any, arrays: TorchArrays) -> Any:
    if isinstance(outputs, Tensor):
        return arrays.give_out(outputs)
    if isinstance(outputs, Mapping):
        return {name: _given_out(one, arrays) for name, one in outputs.items()}
    return [_given_out(one, arrays) for one in outputs] if isinstance(outputs, list | tuple) else outputs
