"""Torch tensors on one device, and modules called as parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.errors import BackendError
from service.backends.parts import Part
from service.backends.protocol import Array, Ints


class TorchArrays:
    """Tensors of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def take_in(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def give_out(self, array: Tensor) -> Array:
        return array.cpu().numpy()

    def take(self, array: Tensor, places: Ints, into: Tensor) -> None:
        torch.index_select(array, 0, self.take_in(places), out=into)

    def join(self, arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
        return torch.cat(tuple(arrays), axis)


def torch_device(name: str) -> torch.device:
    """The device of that name. Raises BackendError if this machine has none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("device cuda was asked for and torch finds none; use device cpu")
    return torch.device(name)


def module_part(module: torch.nn.Module) -> Part:
    """A module as a part: no autograd, always a sequence of outputs."""

    def call(*arrays: Any) -> Sequence[Any]:
        with torch.no_grad():  # outputs of inference_mode could not be merged in place
            outputs = module(*arrays)
        return outputs if isinstance(outputs, tuple | list) else (outputs,)

    return call
