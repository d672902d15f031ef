"""The norms of decoder layers. Parameter names are Hugging Face's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lm.config import LMConfig


class OffsetRMSNorm(nn.Module):
    """RMSNorm whose weights are what is added to one, computed in float32 (Gemma)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).type_as(x)


def make_norm(config: LMConfig, size: int) -> nn.Module:
    """A norm over the last `size` numbers, of the kind that the model has."""
    if config.norm == "layer":
        return nn.LayerNorm(size, eps=config.norm_eps)
    if config.norm == "offset_rms":
        return OffsetRMSNorm(size, config.norm_eps)
    return nn.RMSNorm(size, eps=config.norm_eps)
