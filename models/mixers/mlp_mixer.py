"""MLP-Mixer (arXiv 2105.01601): tokens mixed by one MLP over all of them, channels by another.

x += MLP_tokens(norm(x)^T)^T; x += MLP_channels(norm(x)) (section 2). What the other mixers of images are measured
against, and what makes the gate of S079.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from models.mixers.feed_forward import FeedForward
from models.mixers.images import ImageConfig, ImageStack


@dataclass(frozen=True, slots=True)
class MLPMixerConfig(ImageConfig):
    """token_size and channel_size are the hidden units of the two MLPs."""

    token_size: int = 32
    channel_size: int = 96


class MixerBlock(nn.Module):
    """Mixes the tokens, then the channels, each behind a norm and beside a shortcut."""

    def __init__(self, num_tokens: int, hidden_size: int, token_size: int, channel_size: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(hidden_size)
        self.tokens = FeedForward(num_tokens, token_size)
        self.channel_norm = nn.LayerNorm(hidden_size)
        self.channels = FeedForward(hidden_size, channel_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        columns = self.token_norm(hidden).flatten(1, 2).transpose(1, 2)  # [B, D, H*W]
        hidden = hidden + self.tokens(columns).transpose(1, 2).reshape(hidden.shape)
        mixed: Tensor = hidden + self.channels(self.channel_norm(hidden))
        return mixed


class MLPMixer(ImageStack):
    """A classifier of images as a stack of mixer blocks."""

    def __init__(self, config: MLPMixerConfig) -> None:
        sizes = config.grid_size**2, config.hidden_size, config.token_size, config.channel_size
        super().__init__(config, (MixerBlock(*sizes) for _ in range(config.num_layers)))
        self.config = config
