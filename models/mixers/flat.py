"""What MLPs over flat rows share: a map to the stream, a stack of blocks, a map to the classes.

The stream is [B, D]. Knows no block.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models.artifact import TensorSpec
from models.layered import TensorStack


@dataclass(frozen=True, slots=True)
class FlatConfig:
    """Sizes of an MLP over flat rows; `input_shift` and `input_scale` bring inputs to about zero mean, unit range."""

    num_features: int = 64
    num_classes: int = 10
    hidden_size: int = 64
    num_layers: int = 4
    input_shift: float = 8.0
    input_scale: float = 0.125


class FlatProjection(nn.Module):
    """Raw features to the stream."""

    def __init__(self, config: FlatConfig) -> None:
        super().__init__()
        self.shift, self.scale = config.input_shift, config.input_scale
        self.linear = nn.Linear(config.num_features, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, D]"""
        hidden: Tensor = self.linear((features - self.shift) * self.scale)
        return hidden


class NormedClassifier(nn.Module):
    """Final norm and projection to the classes."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> logits [B, C]"""
        logits: Tensor = self.linear(self.norm(hidden))
        return logits


class FlatStack(TensorStack):
    """A classifier of flat feature rows; without a norm before its head, unless it brings another head."""

    Embed: Callable[[Any], nn.Module] = FlatProjection
    Head: Callable[[int, int], nn.Module] = nn.Linear

    def __init__(self, config: FlatConfig, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embed = self.Embed(config)
        self.layers = nn.ModuleList(blocks)
        self.head = self.Head(config.hidden_size, config.num_classes)
        self.inputs = (TensorSpec(name="features", datatype="FP32", shape=(-1, config.num_features)),)
        self.outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, config.num_classes)),)
