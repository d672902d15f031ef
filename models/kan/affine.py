"""Fixed units: features brought to the range a network works in, and its answers back. Nothing here is trained."""

import torch
from torch import Tensor, nn


class FixedAffine(nn.Module):
    """x * scale + shift, kept with the weights, so that requests speak in the units of the data."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("shift", torch.zeros(size))
        self.scale: Tensor
        self.shift: Tensor

    def set(self, scale: float | Tensor, shift: float | Tensor) -> None:
        """One number for all of the last dimension, or one for each."""
        self.scale.copy_(torch.as_tensor(scale))
        self.shift.copy_(torch.as_tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] -> [..., F]"""
        return x * self.scale + self.shift
