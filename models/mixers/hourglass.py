"""S064, Hourglass MLP ("Rethinking the shape convention of an MLP"): a wide stream, blocks narrow in the middle.

z_0 = W_in x with W_in random and never trained; z_{i+1} = z_i + W_2 gelu(W_1 norm(z_i)), h hidden units, h << d_z.
MLPs have been narrow - wide - narrow; these are wide - narrow - wide (section 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About, Claim
from models.mixers.flat import FlatConfig, FlatStack, NormedClassifier

_TESTS = "tests/models/mixers/test_hourglass.py"


@dataclass(frozen=True, slots=True)
class HourglassConfig(FlatConfig):
    """hidden_size is the width d_z of the stream, bottleneck the h units in the middle of a block."""

    hidden_size: int = 192
    bottleneck: int = 12
    num_layers: int = 10


class RandomProjection(nn.Module):
    """A fixed random matrix to the wide stream: distances are kept in expectation, and nothing is trained."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.shift, self.scale = config.input_shift, config.input_scale
        weight = torch.randn(config.hidden_size, config.num_features) * config.num_features**-0.5
        self.register_buffer("weight", weight)
        self.weight: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, D]"""
        return F.linear((features - self.shift) * self.scale, self.weight)


class HourglassBlock(nn.Module):
    """z + W_2 gelu(W_1 norm(z)), narrow in the middle."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.narrow = nn.Linear(config.hidden_size, config.bottleneck)
        self.widen = nn.Linear(config.bottleneck, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + self.widen(F.gelu(self.narrow(self.norm(hidden))))
        return updated


class Hourglass(FlatStack):
    """A classifier of flat feature rows whose blocks go wide - narrow - wide."""

    about = About(
        "S064",
        "Rethinking the shape convention of an MLP",
        "arXiv 2510.01796",
        (
            Claim("the projection in is never trained", f"{_TESTS}::test_the_projection_in_is_never_trained"),
            Claim("a block changes the stream along at most h directions", f"{_TESTS}::test_a_block_is_narrow"),
        ),
    )
    Config = HourglassConfig
    Embed, Head = RandomProjection, NormedClassifier

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__(config, (HourglassBlock(config) for _ in range(config.num_layers)))
        self.config = config
