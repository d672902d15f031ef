"""S079, NiNformer ("Network in Network Transformer with Token Mixing Generated Gating Function"): a mixer as gate.

y = norm(x); x += (W y) * mixer(y); x += ffn(norm(x)). The gate of a token is made from all tokens, so what passes
depends on the image, as in attention, at the cost of a mixer. Read from the authors' code (Abdullah-88/NiNformer,
`NiNBlock`), which has one LayerNorm for both norms of a block: `shared_norm`, two by default here.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from models.catalogue import About, Claim
from models.mixers.feed_forward import FeedForward
from models.mixers.images import ImageConfig, ImageStack
from models.mixers.mlp_mixer import MixerBlock

_TESTS = "tests/models/mixers/test_ninformer.py"


@dataclass(frozen=True, slots=True)
class NiNformerConfig(ImageConfig):
    """inner_size is the hidden units of every MLP; shared_norm: one norm for both halves of a block, as upstream."""

    inner_size: int = 48
    shared_norm: bool = False


class TokenMixingGate(nn.Module):
    """(W x) * mixer(x)."""

    def __init__(self, config: NiNformerConfig) -> None:
        super().__init__()
        self.mixer = MixerBlock(config.grid_size**2, config.hidden_size, config.inner_size, config.inner_size)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        gated: Tensor = self.linear(hidden) * self.mixer(hidden)
        return gated


class NiNBlock(nn.Module):
    """The gate, then an MLP over the channels, each behind a norm and beside a shortcut."""

    def __init__(self, config: NiNformerConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size) for _ in range(1 if config.shared_norm else 2))
        self.gate = TokenMixingGate(config)
        self.channels = FeedForward(config.hidden_size, config.inner_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        hidden = hidden + self.gate(self.norms[0](hidden))
        mixed: Tensor = hidden + self.channels(self.norms[-1](hidden))
        return mixed


class NiNformer(ImageStack):
    """A classifier of images whose tokens pass a gate that all of them make."""

    about = About(
        "S079",
        "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function",
        "arXiv 2403.02411",
        (
            Claim("a block is the gated equation", f"{_TESTS}::test_a_block_is_the_gated_equation"),
            Claim(
                "a token's gate depends on every token, what it gates on that token alone",
                f"{_TESTS}::test_the_gate_sees_every_token",
            ),
        ),
    )
    Config = NiNformerConfig

    def __init__(self, config: NiNformerConfig) -> None:
        super().__init__(config, (NiNBlock(config) for _ in range(config.num_layers)))
        self.config = config
