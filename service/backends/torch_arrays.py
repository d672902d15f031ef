"""Torch tensors on one device, and modules called as parts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.errors import BackendError
from service.backends.parts import Part, Parts
from service.backends.protocol import Array, Dtype, Ints


class TorchArrays:
    """Tensors of one device, the stream, keys and values of one precision."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def take_in(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array).to(self.device)
        # Of a model in half precision float32 is what it was trained on; any other type is one its graph asks for.
        return tensor.to(self.dtype) if tensor.dtype is torch.float32 else tensor

    def give_out(self, array: Tensor) -> Array:
        # Numpy has no bfloat16, and whoever reads logits or a stream reads float32.
        return (array.float() if array.dtype is self.dtype else array).cpu().numpy()

    def take(self, array: Tensor, places: Ints, into: Tensor) -> None:
        torch.index_select(array, 0, self.take_in(places), out=into)

    def join(self, arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
        return torch.cat(tuple(arrays), axis)


class Opened(NamedTuple):
    """The parts of a model, and the tensors that they take and give."""

    parts: Parts
    arrays: TorchArrays


def torch_dtype(name: Dtype, device: torch.device) -> torch.dtype | None:
    """The precision of that name, None for the one a model is stored in.

    "auto" is what suits the device: float32 on a CPU, which computes it fastest, else as stored.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


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
