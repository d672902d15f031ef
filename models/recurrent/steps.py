"""What recurrent stacks have in common: steps in, a position-wise network in each block, an answer at every step."""

from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec


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


def embedding(vocab_size: int, num_features: int, hidden_size: int, scale: float) -> nn.Module:
    """Of token ids [B, T] below `vocab_size`, or where that is 0 of numbers [B, T, F]."""
    return nn.Embedding(vocab_size, hidden_size) if vocab_size else Numbers(num_features, hidden_size, scale)


def steps_spec(vocab_size: int, num_features: int) -> TensorSpec:
    """The input of either."""
    if vocab_size:
        return TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1))
    return TensorSpec(name="steps", datatype="FP32", shape=(-1, -1, num_features))


def answers_spec(num_classes: int) -> TensorSpec:
    """The output at every step."""
    return TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, num_classes))
