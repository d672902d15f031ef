"""The projections of decoder layers: one matrix, or two thin ones whose product stands for it."""

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


def make_linear(config: LMConfig, num_inputs: int, num_outputs: int, bias: bool) -> nn.Module:
    """A projection of a layer, of the rank at which the configured part of its weights is kept."""
    if config.kept_weights is None:
        return nn.Linear(num_inputs, num_outputs, bias=bias)
    return LowRankLinear(num_inputs, rank_of(config.kept_weights, num_inputs, num_outputs), num_outputs, bias)


def rank_of(kept: float, num_inputs: int, num_outputs: int) -> int:
    """The rank at which two thin matrices have a part `kept` of the weights of one."""
    return max(int(kept * num_inputs * num_outputs / (num_inputs + num_outputs)), 1)
