"""S113, TCNCA ("Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing").

MEGA feeds attention within chunks with a moving average over all that came before; here dilated causal convolutions
take its place. With kernels of K steps and dilations f^0 to f^(n-1) they see 1 + (K - 1)(f^n - 1) / (f - 1) steps.
Queries and keys are made of what the convolutions give, values of the stream itself, as in MEGA; a step attends to
those of its own chunk up to itself. What later steps need of the past is the last inputs of each convolution, and the
keys and values of the running chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.recurrent.steps import FeedForward, StepConfig, StepStack

_TESTS = "tests/models/recurrent/test_tcnca.py"


@dataclass(frozen=True, slots=True)
class TCNCAConfig(StepConfig):
    """chunk_size: steps that attend to each other; num_convolutions n, their kernel_size K, the dilation_factor f."""

    vocab_size: int = 16
    num_classes: int = 16
    chunk_size: int = 24
    num_convolutions: int = 3
    kernel_size: int = 3
    dilation_factor: int = 3
    num_layers: int = 2
    input_scale: float = 1.0
    max_trained: int = 24

    @property
    def tails(self) -> tuple[int, ...]:
        """How many steps back each convolution looks."""
        return tuple((self.kernel_size - 1) * self.dilation_factor**i for i in range(self.num_convolutions))

    @property
    def receptive_field(self) -> int:
        """How many steps the convolutions of one layer see, the present one among them."""
        return 1 + sum(self.tails)


class Convolutions(nn.Module):
    """h + gelu(conv(h)), one dilation after the other."""

    def __init__(self, config: TCNCAConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.tails = list(config.tails)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, config.kernel_size, dilation=config.dilation_factor**i)
            for i in range(config.num_convolutions)
        )

    def forward(self, hidden: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden [B, T, D] and, one after the other, the last inputs of each convolution [B, sum of tails, D]."""
        after, first = [], 0
        for tail, convolution in zip(self.tails, self.convolutions, strict=True):
            seen = torch.cat((past[:, first : first + tail], hidden), dim=1)
            hidden = hidden + F.gelu(convolution(seen.transpose(1, 2))).transpose(1, 2)
            after.append(seen[:, seen.shape[1] - tail :])
            first += tail
        return hidden, torch.cat(after, dim=1)


class ChunkedAttention(nn.Module):
    """A step sees the steps of its own chunk up to itself, with a learned bias for how long ago they were."""

    def __init__(self, config: TCNCAConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.chunk_size, self.scale = config.chunk_size, width**-0.5
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(config.chunk_size))

    def forward(
        self, mixed: Tensor, hidden: Tensor, count: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mixed, hidden [B, T, D], count [B] int64 of steps in the running chunk, the last keys and values [B, c, D].

        Rows may be at different places of their chunks. Returns what is read [B, T, D], count, keys and values after.
        """
        num_steps, size = mixed.shape[1], self.chunk_size
        keys = torch.cat((keys, self.key(mixed)), dim=1)  # [B, c + T, D]
        values = torch.cat((values, self.value(hidden)), dim=1)
        steps = torch.arange(num_steps, device=mixed.device)
        places = (count.unsqueeze(-1) + steps) % size  # [B, T], how many steps of its chunk were before each
        ages = steps.unsqueeze(-1) + size - torch.arange(size + num_steps, device=mixed.device)  # [T, c + T]
        is_seen = (ages >= 0) & (ages <= places.unsqueeze(-1))
        scores = self.query(mixed) @ keys.transpose(1, 2) * self.scale + self.bias[ages.clamp(0, size - 1)]
        weights = scores.masked_fill(~is_seen, -1e30).softmax(-1)
        return self.out(weights @ values), (count + num_steps) % size, keys[:, num_steps:], values[:, num_steps:]


class TCNCABlock(nn.Module):
    """Convolutions, attention within the chunk, and a feed-forward; what they give is added to the stream."""

    def __init__(self, config: TCNCAConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.convolutions = Convolutions(config)
        self.attention = ChunkedAttention(config)
        self.feed_forward = FeedForward(config.hidden_size, config.expansion)

    def forward(
        self, hidden: Tensor, count: Tensor, keys: Tensor, values: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One pass: hidden [B, T, D], count [B] int64, keys and values [B, c, D], past [B, sum of tails, D]."""
        normed = self.norm(hidden)
        mixed, past = self.convolutions(normed, past)
        read, count, keys, values = self.attention(mixed, normed, count, keys, values)
        return self.feed_forward(hidden + mixed + read), count, keys, values, past


class TCNCA(StepStack):
    """A sequence model of dilated convolutions, with attention within chunks."""

    about = About(
        "S113",
        "TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing",
        "arXiv 2312.05605",
        (
            Claim("convolutions reach as far as the formula says", f"{_TESTS}::test_reach_is_that_of_the_formula"),
            Claim("attention stays within its chunk", f"{_TESTS}::test_attention_stays_within_its_chunk"),
            Claim("no answer looks ahead", f"{_TESTS}::test_no_answer_looks_ahead"),
            Claim("the state does not grow", f"{_TESTS}::test_state_does_not_grow"),
        ),
    )
    Config = TCNCAConfig

    def __init__(self, config: TCNCAConfig) -> None:
        super().__init__(config, (TCNCABlock(config) for _ in range(config.num_layers)))
        self.config = config

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        width = self.config.hidden_size
        buffer = (-1, self.config.chunk_size, width)
        return (
            TensorSpec(name="count", datatype="INT64", shape=(-1,)),
            TensorSpec(name="keys", datatype="FP32", shape=buffer),
            TensorSpec(name="values", datatype="FP32", shape=buffer),
            TensorSpec(name="past", datatype="FP32", shape=(-1, sum(self.config.tails), width)),
        )
