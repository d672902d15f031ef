"""S067, RaftMLP ("How Much Can Be Done Without Attention and with Less Spatial Locality?"): columns, rows, channels.

Instead of one MLP over all tokens, one over each column and one over each row; each mixes a raft of r channels
together, so a vector of r * H numbers goes through the vertical one and one of r * W through the horizontal one. Every
mixing is x + mlp(norm(x)). Read from the authors' code (okojoalg/raft-mlp, `SerialPermutedLevel`).

For images of another size that code resizes the features to the trained grid and back, by bicubic interpolation, in
every block. Resizing is linear, so the weights can be resized instead, once: that is `resized`. The shortcut then keeps
the resolution of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.mixers.feed_forward import FeedForward
from models.mixers.images import ImageConfig, ImageStack

_TESTS = "tests/models/mixers/test_raft_mlp.py"


@dataclass(frozen=True, slots=True)
class RaftMLPConfig(ImageConfig):
    """raft_size is the number r of channels mixed together; token_size and channel_size are hidden units of the MLPs.

    Raises ArtifactError where rafts do not fill the channels.
    """

    raft_size: int = 4
    token_size: int = 32
    channel_size: int = 96

    def __post_init__(self) -> None:
        ImageConfig.__post_init__(self)
        if self.hidden_size % self.raft_size:
            raise ArtifactError(
                f"rafts of {self.raft_size} channels do not fill a hidden_size of {self.hidden_size}; "
                f"choose a raft_size that divides {self.hidden_size}"
            )


class RaftMixing(nn.Module):
    """Mixes the tokens of each column, and with them the channels of a raft: c, c + D/r, c + 2 D/r and so on."""

    def __init__(self, config: RaftMLPConfig) -> None:
        super().__init__()
        self.raft_size = config.raft_size
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mlp = FeedForward(config.raft_size * config.grid_size, config.token_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        return hidden + self.mix(self.norm(hidden))

    def mix(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; the r * H numbers of a column and a raft are one vector."""
        rafts = hidden.reshape(*hidden.shape[:3], self.raft_size, -1)  # [B, H, W, r, D/r]
        columns = rafts.permute(0, 4, 2, 3, 1).flatten(3)  # [B, D/r, W, r*H]
        mixed: Tensor = self.mlp(columns).unflatten(3, (self.raft_size, -1))
        return mixed.permute(0, 4, 2, 3, 1).flatten(3)


class RaftBlock(nn.Module):
    """Vertical, horizontal and channel mixing, one after the other."""

    def __init__(self, config: RaftMLPConfig) -> None:
        super().__init__()
        self.vertical, self.horizontal = RaftMixing(config), RaftMixing(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.channels = FeedForward(config.hidden_size, config.channel_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]"""
        hidden = self.vertical(hidden)
        hidden = self.horizontal(hidden.transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = hidden + self.channels(self.norm(hidden))
        return mixed


class RaftMLP(ImageStack):
    """A classifier of images whose tokens mix along columns and rows, a few channels at a time."""

    about = About(
        "S067",
        "RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?",
        "arXiv 2108.04384",
        (
            Claim(
                "a mixing joins the tokens of one column and the channels of one raft",
                f"{_TESTS}::test_a_mixing_joins_one_column_and_one_raft",
            ),
            Claim(
                "fewer parameters than a Mixer of the same width and expansions",
                f"{_TESTS}::test_rafts_need_fewer_parameters_than_a_mixer",
            ),
            Claim(
                "resized weights mix as the trained ones do on resized features",
                f"{_TESTS}::test_resized_weights_mix_as_resized_features",
            ),
        ),
    )
    Config = RaftMLPConfig

    def __init__(self, config: RaftMLPConfig) -> None:
        super().__init__(config, (RaftBlock(config) for _ in range(config.num_layers)))
        self.config = config

    def resized(self, image_size: int) -> "RaftMLP":
        """The same network for square images of another size; raises ArtifactError where patches do not fill them."""
        config, kept = replace(self.config, image_size=image_size), next(self.parameters())
        there = interpolation(config.grid_size, self.config.grid_size).to(kept)
        back = interpolation(self.config.grid_size, config.grid_size).to(kept)
        tensors = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, RaftMixing):
                tensors |= _resized_mixing(module, f"{name}.mlp", there, back)
        model = RaftMLP(config).to(kept.device, kept.dtype)
        model.load_state_dict(tensors)
        return model.train(self.training)


def interpolation(size: int, new_size: int) -> Tensor:
    """The matrix [new_size, size] of bicubic interpolation along one axis; its rows add up to 1."""
    unit = torch.eye(size)[None, :, :, None]  # [1, size, size, 1]: as many channels as places
    return F.interpolate(unit, (new_size, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T


def _resized_mixing(mixing: RaftMixing, name: str, there: Tensor, back: Tensor) -> Mapping[str, Tensor]:
    """What the first map reads is interpolated to the trained places, what the second writes back from them.

    there [trained places, places], back [places, trained places].
    """
    raft, up, down = mixing.raft_size, mixing.mlp.up.weight.detach(), mixing.mlp.down.weight.detach()
    bias = mixing.mlp.down.bias.detach().view(raft, -1)
    return {
        f"{name}.up.weight": (up.view(len(up), raft, -1) @ there).flatten(1),
        f"{name}.down.weight": (back @ down.view(raft, -1, len(up))).flatten(0, 1),
        f"{name}.down.bias": (bias @ back.T).flatten(),
    }
