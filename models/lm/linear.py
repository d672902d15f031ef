"""The projections of decoder layers: one matrix, or two thin ones whose product stands for it, or parts of one."""

import torch
from torch import Tensor, nn

from models.lm.config import LMConfig


class LowRankLinear(nn.Module):
    """A projection through `rank` numbers."""

    def __init__(self, num_inputs: int, rank: int, num_outputs: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(num_inputs, rank, bias=False)
        self.second = nn.Linear(rank, num_outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., num_inputs] -> [..., num_outputs]"""
        projected: Tensor = self.second(self.first(x))
        return projected


class RowsByRank(nn.Linear):
    """A projection whose outputs are parted over the ranks of tensor parallelism; each reads a stream of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, P, num_inputs] -> [B, S, num_outputs], the ranks' parts one after the other"""
        parts = self.weight.view(x.shape[2], -1, x.shape[3])
        projected = torch.einsum("bspi,poi->bspo", x, parts).flatten(2)
        return projected if self.bias is None else projected + self.bias


class ColumnsByRank(nn.Linear):
    """A projection whose inputs are parted over the ranks: each has an output of its own, which sum to the whole.

    The bias belongs to every rank in equal parts.
    """

    num_ranks = 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, num_inputs] -> [B, S, P, num_outputs]"""
        each = x.view(*x.shape[:2], self.num_ranks, -1)  # [B, S, P, I / P]
        projected = torch.einsum("bspi,opi->bspo", each, self.weight.view(self.out_features, self.num_ranks, -1))
        return projected if self.bias is None else projected + self.bias / self.num_ranks


def make_linear(config: LMConfig, num_inputs: int, num_outputs: int, bias: bool) -> nn.Module:
    """A projection of a layer, of the rank at which the configured part of its weights is kept."""
    if config.kept_weights is None:
        return nn.Linear(num_inputs, num_outputs, bias=bias)
    return LowRankLinear(num_inputs, rank_of(config.kept_weights, num_inputs, num_outputs), num_outputs, bias)


def rank_of(kept: float, num_inputs: int, num_outputs: int) -> int:
    """The rank at which two thin matrices have a part `kept` of the weights of one."""
    return max(int(kept * num_inputs * num_outputs / (num_inputs + num_outputs)), 1)


def part_over_ranks(module: nn.Module, num_ranks: int) -> None:
    """Part every projection of an attention or MLP over ranks: those to the stream by inputs, all others by outputs."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            is_last = name in ("o_proj", "down_proj")
            kind = ColumnsByRank if is_last else RowsByRank
            parted = kind(child.in_features, child.out_features, child.bias is not None, device="meta")
            parted.weight, parted.bias = child.weight, child.bias
            if isinstance(parted, ColumnsByRank):
                parted.num_ranks = num_ranks
            setattr(module, name, parted)
