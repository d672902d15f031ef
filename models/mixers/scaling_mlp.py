"""S076, B-MLP of "Scaling MLPs: A Tale of Inductive Bias": inverted bottlenecks on flat pixels, and nothing else.

x += W_c gelu(W_e norm(x)), W_e from D to k D units and W_c back; no norm before the head. Beside it the paper's plain
MLP, x = W gelu(norm(x)), without shortcut or bottleneck. Read from the authors' code (gregorbachmann/scaling_mlps,
`BottleneckMLP`, `StandardMLP`).
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About, Claim
from models.mixers.feed_forward import FeedForward
from models.mixers.flat import FlatConfig, FlatStack

_TESTS = "tests/models/mixers/test_scaling_mlp.py"


@dataclass(frozen=True, slots=True)
class ScalingMLPConfig(FlatConfig):
    """expansion is k, the width inside a block for each unit of the stream."""

    hidden_size: int = 48
    num_layers: int = 3
    expansion: int = 4


class InvertedBottleneck(nn.Module):
    """x + W_c gelu(W_e norm(x)), wide in the middle."""

    def __init__(self, config: ScalingMLPConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mlp = FeedForward(config.hidden_size, config.hidden_size * config.expansion)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + self.mlp(self.norm(hidden))
        return updated


class ScalingMLP(FlatStack):
    """A classifier of flat feature rows as a stack of inverted bottlenecks."""

    about = About(
        "S076",
        "Scaling MLPs: A Tale of Inductive Bias",
        "arXiv 2306.13575",
        (
            Claim(
                "it has no idea of an image: pixels in another order make no difference",
                f"{_TESTS}::test_pixels_in_another_order_make_no_difference",
            ),
            Claim("a block is wide in the middle", f"{_TESTS}::test_a_block_changes_the_stream_along_every_direction"),
        ),
    )
    Config = ScalingMLPConfig

    def __init__(self, config: ScalingMLPConfig) -> None:
        super().__init__(config, (InvertedBottleneck(config) for _ in range(config.num_layers)))
        self.config = config


class PlainBlock(nn.Module):
    """W gelu(norm(x)), without a shortcut."""

    def __init__(self, config: FlatConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        made: Tensor = self.linear(F.gelu(self.norm(hidden)))
        return made


class PlainMLP(FlatStack):
    """What MLPs were before: S-MLP of the paper."""

    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config, (PlainBlock(config) for _ in range(config.num_layers)))
        self.config = config
