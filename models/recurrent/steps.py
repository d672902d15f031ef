"""What recurrent stacks have in common: steps in, a position-wise network in each block, an answer at every step."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.layered import SequenceStack


@dataclass(frozen=True, slots=True)
class StepConfig:
    """Sizes of a recurrent stack.

    Steps are token ids below `vocab_size`, or where that is 0 `num_features` numbers, which `input_scale` brings to
    about unit range.
    """

    vocab_size: int = 0
    num_features: int = 1
    num_classes: int = 10
    hidden_size: int = 32
    num_layers: int = 4
    expansion: int = 2
    input_scale: float = 0.0625
    max_chunk: int = 32
    max_trained: int = 64


class Numbers(nn.Module):
    """Steps of F numbers to the residual stream."""

    def __init__(self, num_features: int, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(num_features, hidden_size)

    def forward(self, steps: Tensor) -> Tensor:
        """[B, T, F] -> [B, T, D]"""
        hidden: Tensor = self.linear(steps * self.scale)
        return hidden


class FeedForward(nn.Module):
    """h + W_2 gelu(W_1 norm(h)), every step for itself."""

    def __init__(self, hidden_size: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, hidden_size * expansion)
        self.down = nn.Linear(hidden_size * expansion, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        updated: Tensor = hidden + self.down(F.gelu(self.up(self.norm(hidden))))
        return updated


class Answers(nn.Module):
    """Final norm and projection, an answer at every step."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, C]"""
        logits: Tensor = self.linear(self.norm(hidden))
        return logits


class StepStack(SequenceStack):
    """Reads token ids [B, T] or numbers [B, T, F] through a stack of blocks and answers at every step [B, T, C]."""

    def __init__(self, config: StepConfig, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.max_chunk, self.max_trained, self.vocab_size = config.max_chunk, config.max_trained, config.vocab_size
        self.embed = _embedding(config)
        self.layers = nn.ModuleList(blocks)
        self.head = Answers(config.hidden_size, config.num_classes)
        self.inputs = (_steps(config),)
        self.outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, config.num_classes)),)


def _embedding(config: StepConfig) -> nn.Module:
    if config.vocab_size:
        return nn.Embedding(config.vocab_size, config.hidden_size)
    return Numbers(config.num_features, config.hidden_size, config.input_scale)


def _steps(config: StepConfig) -> TensorSpec:
    if config.vocab_size:
        return TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1))
    return TensorSpec(name="steps", datatype="FP32", shape=(-1, -1, config.num_features))
