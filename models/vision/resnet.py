"""Residual networks (arXiv 1512.03385) with the stride in the 3x3 convolution, as transformers and timm build them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lm.mlp import activation
from models.vision.stages import Stages, Step

BlockKind: TypeAlias = Literal["basic", "bottleneck"]
# Of what a bottleneck gives, the part it computes inside.
_REDUCTION = 4


@dataclass(frozen=True, slots=True)
class ResNetConfig:
    """Sizes of a residual network; `widths` are the channels each stage gives."""

    image_size: tuple[int, int]
    num_channels: int
    num_classes: int
    stem_width: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block: BlockKind
    activation: str = "relu"
    has_strided_first_stage: bool = False
    is_strided_early: bool = False


class RunningNorm(nn.Module):
    """Batch norm by the statistics of training, whatever else is in the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, height, width] -> the same"""
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, training=False, eps=1e-5)


class Conv(nn.Module):
    """A convolution that keeps the size but for its stride, and its norm."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = RunningNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, height, width] -> [B, E, height / stride, width / stride]"""
        normed: Tensor = self.norm(self.conv(x.to(self.conv.weight.dtype)))
        return normed


class Block(nn.Module):
    """Two or three convolutions beside a shortcut; the activation is on the stream itself."""

    def __init__(self, config: ResNetConfig, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.act = activation(config.activation)
        self.keeps_shape = width_in == width and stride == 1
        if config.block == "basic":
            convs = [Conv(width_in, width, 3, stride), Conv(width, width, 3)]
        else:
            inner, early = width // _REDUCTION, config.is_strided_early
            convs = [
                Conv(width_in, inner, 1, stride if early else 1),
                Conv(inner, inner, 3, 1 if early else stride),
                Conv(inner, width, 1),
            ]
        self.convs = nn.ModuleList(convs)
        self.shortcut = nn.Identity() if self.keeps_shape else Conv(width_in, width, 1, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, height, width] -> [B, E, height / stride, width / stride]"""
        changed = hidden
        for i, conv in enumerate(self.convs):
            changed = conv(self.act(changed)) if i else conv(changed)
        return self.act(changed + self.shortcut(hidden))


class Stem(nn.Module):
    """Pixels to a quarter of their size in each direction."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.act = activation(config.activation)
        self.first = Conv(config.num_channels, config.stem_width, 7, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, height, width], normalised -> [B, D, height / 4, width / 4]"""
        return F.max_pool2d(self.act(self.first(pixels)), 3, stride=2, padding=1)


class Head(nn.Module):
    """Mean over all places, then the classifier."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, height, width] -> logits [B, C]"""
        logits: Tensor = self.classifier(hidden.mean((2, 3)))
        return logits


class ResNet(nn.Module):
    """The network in the order of its parts, for reading its weights; `stack` is what is run."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.stages = nn.ModuleList()
        width = config.stem_width
        for i, (given, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            stride = 2 if i or config.has_strided_first_stage else 1
            first = Block(config, width, given, stride)
            self.stages.append(nn.ModuleList([first, *(Block(config, given, given, 1) for _ in range(1, depth))]))
            width = given
        self.head = Head(width, config.num_classes)

    def stack(self) -> Stages:
        """The same modules as a stack."""
        steps = [Step("stem", self.stem)]
        for i, stage in enumerate(self.stages, 1):
            blocks: Iterable[tuple[int, Block]] = enumerate(stage, 1)  # type: ignore[arg-type]
            steps += [Step(f"stage {i} block {j}", block, block.keeps_shape) for j, block in blocks]
        config = self.config
        return Stages(
            (*steps, Step("head", self.head)),
            (config.num_channels, *config.image_size),
            config.num_classes,
            "post-activation",
        )
