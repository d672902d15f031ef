"""A residual MLP: same-shape pre-norm blocks between a projection and a classifier head."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About
from models.layered import TensorStack


@dataclass(frozen=True, slots=True)
class ResidualMLPConfig:
    """Sizes of a residual MLP; `input_shift` and `input_scale` bring raw inputs to about zero mean, unit range."""

    num_features: int = 64
    num_classes: int = 10
    hidden_size: int = 64
    expansion: int = 2
    num_layers: int = 12
    input_shift: float = 8.0
    input_scale: float = 0.125


class Projection(nn.Module):
    """Raw features to the residual stream."""

    def __init__(self, config: ResidualMLPConfig) -> None:
        super().__init__()
        self.shift, self.scale = config.input_shift, config.input_scale
        self.linear = nn.Linear(config.num_features, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, D]"""
        hidden: Tensor = self.linear((features - self.shift) * self.scale)
        return hidden


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


class Classifier(nn.Module):
    """Final norm and projection to the classes."""

    def __init__(self, config: ResidualMLPConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> logits [B, C]"""
        logits: Tensor = self.linear(self.norm(hidden))
        return logits


class ResidualMLP(TensorStack):
    """A classifier of flat feature rows, as a stack of same-shape residual blocks."""

    about = About("S122", "Layer Normalization", "arXiv 1607.06450")
    Config = ResidualMLPConfig

    def __init__(self, config: ResidualMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Projection(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Classifier(config)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="features", datatype="FP32", shape=(-1, self.config.num_features)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", datatype="FP32", shape=(-1, self.config.num_classes)),)
