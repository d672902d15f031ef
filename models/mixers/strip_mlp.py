"""S074, Strip-MLP ("Efficient Token Interaction for Vision MLP"): a row also hears its neighbouring rows.

A strip layer maps the tokens of a row from those of the row itself and of the rows beside it, each group of channels
with weights of its own: y[s, j] = sum_k sum_i W[j, i, k] x[s + k, i] + b[j], k = -1, 0, 1. CGSMM is one over rows and
then one over columns; LSMM weighs two strip-shaped depthwise convolutions and the input against each other. Each takes
half of the channels. A block is x + tokens(x), then x + channels(x). Read from the authors' code
(Med-Process/Strip_MLP, `StripMLP_Block`, `ChannelMixing`).

Ours differs: where that code normalises over the batch, each token is normalised over its channels; and the blocks are
of one shape, without the pyramid of four stages.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.mixers.images import ImageConfig, ImageStack

_TESTS = "tests/models/mixers/test_strip_mlp.py"


@dataclass(frozen=True, slots=True)
class StripMLPConfig(ImageConfig):
    """strip_width is how many strips a token hears; share_size is how many channels share the weights of a group.

    local_length is the longer side of the local convolutions; channel_expansion is that of the channel MLP.
    """

    hidden_size: int = 24
    strip_width: int = 3
    share_size: int = 4
    local_length: int = 7
    channel_expansion: int = 3

    def __post_init__(self) -> None:
        ImageConfig.__post_init__(self)
        if self.hidden_size % (2 * self.share_size):
            raise ArtifactError(
                f"half of a hidden_size of {self.hidden_size} is not made of groups of share_size {self.share_size}; "
                f"choose a multiple of {2 * self.share_size}"
            )
        if not self.strip_width % 2 or not self.local_length % 2:
            raise ArtifactError(
                f"strip_width {self.strip_width} and local_length {self.local_length} have a middle only if odd; "
                "choose odd numbers"
            )


class StripLayer(nn.Module):
    """The tokens of each strip from those of the strip and of its neighbours."""

    def __init__(self, num_groups: int, strip_length: int, strip_width: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        size = num_groups * strip_length
        self.mix = nn.Conv2d(size, size, (1, strip_width), padding=(0, strip_width // 2), groups=num_groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, strips, tokens, D] -> the same; channels c and c + num_groups share their weights."""
        *outer, tokens, _ = hidden.shape
        strips = hidden.reshape(*outer, tokens, -1, self.num_groups)  # [B, S, L, D/G, G]
        strips = strips.permute(0, 4, 2, 3, 1).flatten(1, 2)  # [B, G*L, D/G, S]
        mixed: Tensor = self.mix(strips).unflatten(1, (self.num_groups, tokens))
        return mixed.permute(0, 4, 2, 3, 1).flatten(3)


class RelativePosition(nn.Module):
    """One learned vector for each distance between the row and the column of a token."""

    def __init__(self, grid_size: int, channels: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.table = nn.Parameter(0.02 * torch.randn(2 * grid_size - 1, channels))

    def forward(self) -> Tensor:
        """[H, W, D]"""
        places = torch.arange(self.grid_size, device=self.table.device)
        return self.table[places[None, :] - places[:, None] + self.grid_size - 1]


class CascadeGroupStripMixing(nn.Module):
    """CGSMM: strips of rows, then strips of columns, each fused with the input."""

    def __init__(self, config: StripMLPConfig) -> None:
        super().__init__()
        channels = config.hidden_size // 2
        sizes = channels // config.share_size, config.grid_size, config.strip_width
        self.rows, self.columns = StripLayer(*sizes), StripLayer(*sizes)
        self.row_place = RelativePosition(config.grid_size, channels)
        self.column_place = RelativePosition(config.grid_size, channels)
        self.fuse_rows = nn.Linear(2 * channels, channels, bias=False)
        self.fuse_columns = nn.Linear(2 * channels, channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D/2] -> [B, H, W, D/2]"""
        rows = self.rows(hidden + self.row_place())
        rows = F.gelu(self.norm(self.fuse_rows(torch.cat((rows, hidden), -1)))) + self.column_place()
        columns = self.columns(rows.transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = self.fuse_columns(torch.cat((hidden, columns), -1))
        return mixed


class LocalStripMixing(nn.Module):
    """LSMM: a wide and a high depthwise convolution and the input, weighed for each channel by the whole image."""

    def __init__(self, config: StripMLPConfig) -> None:
        super().__init__()
        channels, wide = config.hidden_size // 2, (config.strip_width, config.local_length)
        self.wide, self.high = (_depthwise(channels, kernel) for kernel in (wide, wide[::-1]))
        self.squeeze = nn.Linear(channels, channels // 2)
        self.weigh = nn.Linear(channels // 2, 3 * channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D/2] -> [B, H, W, D/2]"""
        images = hidden.permute(0, 3, 1, 2)  # [B, D/2, H, W]
        branches = torch.stack((self.high(images), self.wide(images), images), 2)  # [B, D/2, 3, H, W]
        pooled = branches.sum(2).mean((2, 3))
        weights = self.weigh(F.gelu(self.squeeze(pooled))).unflatten(1, (-1, 3)).softmax(2)  # [B, D/2, 3]
        mixed: Tensor = (branches * weights[..., None, None]).sum(2)
        return mixed.permute(0, 2, 3, 1)


class TokenMixing(nn.Module):
    """A 3x3 depthwise convolution, then CGSMM on one half of the channels and LSMM on the other."""

    def __init__(self, config: StripMLPConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm, self.inner_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.near = _depthwise(size, (3, 3))
        self.split, self.fuse = nn.Linear(size, size), nn.Linear(size, size, bias=False)
        self.strips, self.local = CascadeGroupStripMixing(config), LocalStripMixing(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        hidden = self.near(F.gelu(self.norm(hidden)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        far, near = F.gelu(self.inner_norm(self.split(hidden))).chunk(2, -1)
        mixed: Tensor = self.fuse(torch.cat((self.strips(far), self.local(near)), -1))
        return mixed


class ResponseNorm(nn.Module):
    """Global response normalisation: x + gain * x * |x| / mean |x| + bias, |x| a channel's norm over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        # The square root's slope at zero is infinite: a channel that is silent everywhere would learn NaN.
        energy = (hidden.square().sum((1, 2), keepdim=True) + 1e-12).sqrt()
        return hidden + self.gain * (hidden * energy / (energy.mean(-1, keepdim=True) + 1e-6)) + self.bias


class ChannelMixing(nn.Module):
    """A depthwise convolution and an MLP over the channels with a response norm in its middle."""

    def __init__(self, config: StripMLPConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.hidden_size * config.channel_expansion
        self.around = _depthwise(size, (config.local_length, config.local_length))
        self.norm = nn.LayerNorm(size)
        self.up, self.response, self.down = nn.Linear(size, inner), ResponseNorm(inner), nn.Linear(inner, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        around = self.around(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed: Tensor = self.down(self.response(F.gelu(self.up(self.norm(around)))))
        return mixed


class StripBlock(nn.Module):
    """Tokens, then channels, each beside a shortcut."""

    def __init__(self, config: StripMLPConfig) -> None:
        super().__init__()
        self.tokens, self.channels = TokenMixing(config), ChannelMixing(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        hidden = hidden + self.tokens(hidden)
        mixed: Tensor = hidden + self.channels(hidden)
        return mixed


class StripMLP(ImageStack):
    """A classifier of images whose tokens interact across neighbouring strips."""

    about = About(
        "S074",
        "Strip-MLP: Efficient Token Interaction for Vision MLP",
        "arXiv 2307.11458",
        (
            Claim(
                "a strip depends on itself and its neighbours alone",
                f"{_TESTS}::test_a_strip_depends_on_itself_and_its_neighbours_alone",
            ),
            Claim("a strip layer is the sum over neighbours", f"{_TESTS}::test_a_strip_layer_is_the_sum_it_stands_for"),
            Claim(
                "rows then columns reach the whole image in one block",
                f"{_TESTS}::test_the_cascade_reaches_every_token",
            ),
        ),
    )
    Config = StripMLPConfig

    def __init__(self, config: StripMLPConfig) -> None:
        super().__init__(config, (StripBlock(config) for _ in range(config.num_layers)))
        self.config = config


def _depthwise(channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=False)
