"""A residual MLP: same-shape pre-norm blocks between a projection and a classifier head."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About
from models.mixers.flat import FlatConfig, FlatStack, NormedClassifier


@dataclass(frozen=True, slots=True)
class ResidualMLPConfig(FlatConfig):
    """expansion: width inside a block for each unit of the stream."""

    num_layers: int = 12
    expansion: int = 2


class Block(nn.Module):
    """Pre-norm residual block: hidden + W2 gelu(W1 norm(hidden))."""

    def __init__(self, config: ResidualMLPConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.hidden_size * config.expansion)
        self.down = nn.Linear(config.hidden_size * config.expansion, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + self.down(F.gelu(self.up(self.norm(hidden))))
        return updated


class ResidualMLP(FlatStack):
    """A classifier of flat feature rows, as a stack of same-shape residual blocks."""

    about = About("S122", "Layer Normalization", "arXiv 1607.06450")
    Config = ResidualMLPConfig
    Head = NormedClassifier

    def __init__(self, config: ResidualMLPConfig) -> None:
        super().__init__(config, (Block(config) for _ in range(config.num_layers)))
        self.config = config
