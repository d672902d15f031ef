"""A residual MLP: same-shape pre-norm blocks between a projection and a classifier head."""

import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.layered import TensorStack
from models.shards import Shards, load_into, refuse_differences


@dataclass(frozen=True, slots=True)
class ResidualMLPConfig:
    """Sizes of a residual MLP; `input_shift` and `input_scale` bring raw inputs to about zero mean, unit range."""

    num_features: int
    num_classes: int
    hidden_size: int
    expansion: int
    num_layers: int
    input_shift: float = 0.0
    input_scale: float = 1.0


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

    def __init__(self, config: ResidualMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Projection(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Classifier(config)


def load(directory: Path, dtype: torch.dtype | None = torch.float32) -> ResidualMLP:
    """Build the model of a checkpoint directory, ready for inference, in `dtype`, or None for the one it is stored in.

    Raises ArtifactError naming tensors that are missing, unexpected or of another shape.
    """
    raw = json.loads((directory / "config.json").read_text())
    config = ResidualMLPConfig(**{field.name: raw[field.name] for field in fields(ResidualMLPConfig)})
    shards = Shards(directory)
    with torch.device("meta"):
        model = ResidualMLP(config)
    wanted = model.state_dict().keys()
    refuse_differences(directory, wanted - shards.names, shards.names - wanted)
    load_into(model, {name: partial(shards.read, name) for name in wanted}, dtype)
    return model.eval()


def save(model: ResidualMLP, directory: Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    raw = {"architectures": ["ResidualMLP"], "model_type": "residual_mlp", **asdict(model.config)}
    (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    save_file(model.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
