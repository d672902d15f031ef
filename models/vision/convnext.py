"""ConvNeXt (arXiv 2201.03545) and ConvNeXt V2 (arXiv 2301.00808)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lm.mlp import activation
from models.vision.stages import Stages, Step

_EPS = 1e-6
_EXPANSION = 4


@dataclass(frozen=True, slots=True)
class ConvNeXtConfig:
    """Sizes of a ConvNeXt; `has_response_norm` is V2's norm inside the blocks, `has_scales` V1's factors."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int
    num_classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head_eps: float
    activation: str = "gelu"
    has_scales: bool = True
    has_response_norm: bool = False


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, height, width] -> the same"""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, _EPS)
        return normed.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Each channel by its share of the energy of the whole image (arXiv 2301.00808, section 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, height, width, E] -> the same"""
        energy = torch.sqrt((x * x).sum(dim=(1, 2), keepdim=True))  # [B, 1, 1, E]
        share = energy / (energy.mean(dim=-1, keepdim=True) + _EPS)
        return x + self.weight * (x * share) + self.bias


class Block(nn.Module):
    """A wide convolution of each channel by itself, then an MLP at each place, added to the stream."""

    def __init__(self, config: ConvNeXtConfig, width: int) -> None:
        super().__init__()
        self.act = activation(config.activation)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.up = nn.Linear(width, _EXPANSION * width)
        self.response = ResponseNorm(_EXPANSION * width) if config.has_response_norm else nn.Identity()
        self.down = nn.Linear(_EXPANSION * width, width)
        self.scale = nn.Parameter(torch.ones(width)) if config.has_scales else None

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, height, width] -> [B, D, height, width]"""
        places = self.norm(self.depthwise(hidden).permute(0, 2, 3, 1))  # [B, height, width, D]
        changed = self.down(self.response(self.act(self.up(places))))
        if self.scale is not None:
            changed = changed * self.scale
        updated: Tensor = hidden + changed.permute(0, 3, 1, 2)
        return updated


class Stem(nn.Module):
    """Pixels to patches."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.num_channels, config.widths[0], config.patch_size, stride=config.patch_size)
        self.norm = ChannelNorm(config.widths[0])

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, height, width], normalised -> [B, D, height / patch, width / patch]"""
        hidden: Tensor = self.norm(self.conv(pixels.to(self.conv.weight.dtype)))
        return hidden


class Reduction(nn.Module):
    """Half the size in each direction, between stages."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width_in)
        self.conv = nn.Conv2d(width_in, width, 2, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, height, width] -> [B, E, height / 2, width / 2]"""
        reduced: Tensor = self.conv(self.norm(hidden))
        return reduced


class Head(nn.Module):
    """Mean over all places, norm, classifier."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.widths[-1], eps=config.head_eps)
        self.classifier = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, height, width] -> logits [B, C]"""
        logits: Tensor = self.classifier(self.norm(hidden.mean((2, 3))))
        return logits


class ConvNeXt(nn.Module):
    """The network in the order of its parts, for reading its weights; `stack` is what is run."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        pairs = zip(config.widths, config.widths[1:], strict=False)
        self.reductions = nn.ModuleList(Reduction(width_in, width) for width_in, width in pairs)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(config, width) for _ in range(depth))
            for width, depth in zip(config.widths, config.depths, strict=True)
        )
        self.head = Head(config)

    def stack(self) -> Stages:
        """The same modules as a stack."""
        steps = [Step("stem", self.stem)]
        for i, stage in enumerate(self.stages, 1):
            if i > 1:
                steps.append(Step(f"reduction to stage {i}", self.reductions[i - 2]))
            blocks = enumerate(stage, 1)  # type: ignore[arg-type, var-annotated]
            steps += [Step(f"stage {i} block {j}", block, is_equal=True) for j, block in blocks]
        config = self.config
        image_shape = (config.num_channels, *config.image_size)
        return Stages((*steps, Step("head", self.head)), image_shape, config.num_classes, "standard")
