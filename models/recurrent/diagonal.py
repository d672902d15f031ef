"""S121, a diagonal recurrence with negative eigenvalues ("Unlocking State-Tracking in Linear RNNs ...").

h_t = a_t * h_{t-1} + b_t, each channel with factors and additions that the step decides. With a in (0, 1), as diagonal
recurrences have it, no channel changes its sign, which parity needs (theorem 1); 2 a - 1 is in (-1, 1) (section 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.recurrent.steps import FeedForward, StepConfig, StepStack

_TESTS = "tests/models/recurrent/test_diagonal.py"
# Each doubles the steps that the scan of a chunk reaches.
_SHIFTS = (1, 2, 4, 8)
_MAX_CHUNK = 2 * _SHIFTS[-1]


@dataclass(frozen=True, slots=True)
class DiagonalConfig(StepConfig):
    """is_signed: whether factors are in (-1, 1) or in (0, 1)."""

    vocab_size: int = 2
    num_classes: int = 2
    num_layers: int = 1
    is_signed: bool = True
    input_scale: float = 1.0
    max_chunk: int = 16
    max_trained: int = 40


def recurrent(factors: Tensor, added: Tensor, level: Tensor) -> Tensor:
    """Step by step, the plain reference: factors, added [B, T, N], level [B, N] before them; levels [B, T, N]."""
    levels = []
    for t in range(factors.shape[1]):
        level = factors[:, t] * level + added[:, t]
        levels.append(level)
    return torch.stack(levels, dim=1)


def scan(factors: Tensor, added: Tensor, level: Tensor) -> Tensor:
    """All steps of a chunk of at most 16 in four rounds: after each, twice as many steps are one; as `recurrent`."""
    num_steps = factors.shape[1]
    for shift in _SHIFTS:
        earlier = F.pad(factors, (0, 0, shift, 0), value=1.0)[:, :num_steps]
        added = added + factors * F.pad(added, (0, 0, shift, 0))[:, :num_steps]
        factors = factors * earlier
    return added + factors * level.unsqueeze(1)


class DiagonalBlock(nn.Module):
    """Pre-norm recurrence, gated, and a feed-forward, each added to the stream."""

    def __init__(self, config: DiagonalConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.is_signed = config.is_signed
        self.norm = nn.LayerNorm(width)
        self.factor, self.added = nn.Linear(width, width), nn.Linear(width, width)
        self.gate, self.out = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.feed_forward = FeedForward(width, config.expansion)

    def forward(self, hidden: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: hidden [B, T, D], level [B, D]; both come out as they go in."""
        normed = self.norm(hidden)
        levels = scan(self.factors(normed), self.added(normed), level)
        read = self.out(levels * F.silu(self.gate(normed)))
        return self.feed_forward(hidden + read), levels[:, -1]

    def factors(self, normed: Tensor) -> Tensor:
        """[B, T, D] -> a [B, T, D]"""
        factors: Tensor = self.factor(normed).sigmoid()
        return 2.0 * factors - 1.0 if self.is_signed else factors


class Diagonal(StepStack):
    """A sequence model of channels that each keep one number, and may flip its sign."""

    about = About(
        "S121",
        "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
        "arXiv 2411.12537",
        (
            Claim("recurrent = scan", f"{_TESTS}::test_both_forms_give_the_same_numbers"),
            Claim("a factor of -1 computes parity", f"{_TESTS}::test_factor_of_minus_one_is_parity"),
            Claim("factors that are not negative keep the order of levels", f"{_TESTS}::test_old_range_keeps_order"),
            Claim("the state does not grow", f"{_TESTS}::test_state_does_not_grow"),
        ),
    )
    Config = DiagonalConfig

    def __init__(self, config: DiagonalConfig) -> None:
        if config.max_chunk > _MAX_CHUNK:
            raise ArtifactError(f"max_chunk {config.max_chunk} is more than the {_MAX_CHUNK} steps that a scan reaches")
        super().__init__(config, (DiagonalBlock(config) for _ in range(config.num_layers)))
        self.config = config

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="level", datatype="FP32", shape=(-1, self.config.hidden_size)),)
