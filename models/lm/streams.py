"""Where a stream begins and where it ends: what the first visit is handed, and what is left when nothing is pending."""

import torch
from torch import Tensor, nn

from models.lm.residual import Residual


class Begun(nn.Module):
    """An embedding as the first visit takes it: nothing pending, no layer visited, all ranks' streams equal."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, stream: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, `Residual.width`]"""
        nothing = torch.zeros_like(stream)
        if self.residual.has_streams:
            return torch.cat((*(stream,) * (self.residual.num_ranks + 1), nothing[..., :1]), dim=-1)
        no_layer = (nothing[..., :1] - 1,) if self.residual.has_slots else ()
        return torch.cat((stream, nothing, *no_layer), dim=-1)


class Landed(nn.Module):
    """What the last visit hands on as the stream."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, `Residual.width`] -> [B, S, D]"""
        landed: Tensor = self.residual.landed(hidden)
        return landed


def make_begun(residual: Residual) -> nn.Module:
    """What follows the embedding; where a visit hands on the stream alone, nothing."""
    return Begun(residual) if residual.width(1) > 1 else nn.Identity()


def make_landed(residual: Residual) -> nn.Module:
    """What comes before the head; where a visit hands on the stream alone, nothing."""
    return Landed(residual) if residual.width(1) > 1 else nn.Identity()
