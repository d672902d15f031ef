"""S121, DeltaNet with negative eigenvalues ("Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues").

S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T with unit keys: along k_t the memory is multiplied by 1 - b_t. With b
in (0, 1), as DeltaNet has it, that is never negative and no memory can flip, which parity needs (theorem 1); with b in
(0, 2) it is in (-1, 1) (section 4). Two reflections in one step are a rotation, which counting modulo 3 needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.recurrent.steps import FeedForward, StepConfig, StepStack

_TESTS = "tests/models/recurrent/test_delta_net.py"
# Each doubles the updates whose effects on each other are resolved.
_BLOCKS = (1, 2, 4, 8)
_MAX_UPDATES = 2 * _BLOCKS[-1]


@dataclass(frozen=True, slots=True)
class DeltaNetConfig(StepConfig):
    """is_signed: whether eigenvalues are in (-1, 1) or in (0, 1). num_updates: of the memory, at every step."""

    vocab_size: int = 2
    num_classes: int = 2
    num_heads: int = 2
    num_layers: int = 1
    num_updates: int = 1
    is_signed: bool = True
    input_scale: float = 1.0
    max_chunk: int = 16
    max_trained: int = 40


def recurrent(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Update by update, the plain reference, R updates before each of T answers.

    q [B, H, T, K], k [B, H, T * R, K] unit, v [B, H, T * R, V], rate b [B, H, T * R], memory [B, H, K, V]. Returns what
    is read [B, H, T, V], and the memory after the last step.
    """
    read, num_updates = [], k.shape[2] // q.shape[2]
    for i in range(k.shape[2]):
        known = (k[:, :, i].unsqueeze(-2) @ memory).squeeze(-2)  # what the memory says of this key
        change = rate[:, :, i, None] * (v[:, :, i] - known)
        memory = memory + k[:, :, i].unsqueeze(-1) * change.unsqueeze(-2)
        if i % num_updates == num_updates - 1:
            read.append((q[:, :, i // num_updates].unsqueeze(-2) @ memory).squeeze(-2))
    return torch.stack(read, dim=2), memory


def invert(lower: Tensor) -> Tensor:
    """(I + L)^-1 of strictly lower triangular L [..., S, S], S at most 16.

    Blocks on the diagonal are inverted, then blocks of twice the size from two of them and what is below the first.
    The product (I - L)(I + L^2)(I + L^4)(I + L^8) is the same number, but where keys are alike its factors are large
    and cancel: in float32 nothing is left of it.
    """
    size = lower.shape[-1]
    found = torch.eye(size, dtype=lower.dtype, device=lower.device)
    places = torch.arange(size, device=lower.device)
    for block in _BLOCKS:
        own, pair = places // block, places // (2 * block)
        is_below = (pair.unsqueeze(1) == pair.unsqueeze(0)) & (own.unsqueeze(1) != own.unsqueeze(0))
        found = found - found @ lower.masked_fill(~is_below, 0.0) @ found
    return found


def parallel(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """All updates of one chunk at once; as `recurrent`.

    The changes U of the memory are b (V - K S) less what earlier changes already did: (I + tril(b K K^T, -1)) U.
    """
    known = (rate.unsqueeze(-1) * (k @ k.transpose(-1, -2))).tril(-1)
    changes = invert(known) @ (rate.unsqueeze(-1) * (v - k @ memory))
    num_updates = k.shape[2] // q.shape[2]
    updates = torch.arange(k.shape[2], device=k.device) // num_updates  # the step of each
    later = updates.unsqueeze(0) > torch.arange(q.shape[2], device=k.device).unsqueeze(1)  # [T, T * R]
    weights = (q @ k.transpose(-1, -2)).masked_fill(later, 0.0)
    return q @ memory + weights @ changes, memory + k.transpose(-1, -2) @ changes


class DeltaRule(nn.Module):
    """Unit queries and keys, values and rates of every step, and how what is read comes back to the stream."""

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__()
        width, wide = config.hidden_size, config.hidden_size * config.num_updates
        self.num_heads, self.num_updates = config.num_heads, config.num_updates
        self.max_rate = 2.0 if config.is_signed else 1.0
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, wide, bias=False)
        self.value, self.rate = (
            nn.Linear(width, wide, bias=False),
            nn.Linear(width, config.num_heads * config.num_updates),
        )
        self.norm = nn.RMSNorm(width // config.num_heads, eps=1e-5)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, H, T, K], k [B, H, T * R, K], v [B, H, T * R, V], rate [B, H, T * R]"""
        q, k = (
            F.normalize(self.split(self.query(hidden), 1), dim=-1),
            F.normalize(self.updates(self.key(hidden)), dim=-1),
        )
        rate = self.max_rate * self.updates(self.rate(hidden)).squeeze(-1).sigmoid()
        return q, k, self.updates(self.value(hidden)), rate

    def split(self, joined: Tensor, num_updates: int) -> Tensor:
        """[B, T, R * H * K] -> [B, H, T * R, K]"""
        return torch.unflatten(joined, -1, (num_updates, self.num_heads, -1)).flatten(1, 2).transpose(1, 2)

    def updates(self, joined: Tensor) -> Tensor:
        """[B, T, R * H * K] -> [B, H, T * R, K]"""
        return self.split(joined, self.num_updates)

    def join(self, read: Tensor) -> Tensor:
        """[B, H, T, V] -> [B, T, D], with a norm for each head."""
        joined: Tensor = self.out(self.norm(read.transpose(1, 2)).flatten(2))
        return joined


class DeltaNetBlock(nn.Module):
    """Pre-norm delta rule and feed-forward, each added to the stream."""

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.rule = DeltaRule(config)
        self.feed_forward = FeedForward(config.hidden_size, config.expansion)

    def forward(self, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: hidden [B, T, D], memory [B, H, K, V]; both come out as they go in."""
        q, k, v, rate = self.rule.project(self.norm(hidden))
        read, after = parallel(q, k, v, rate, memory)
        return self.feed_forward(hidden + self.rule.join(read)), after


class DeltaNet(StepStack):
    """A sequence model whose memory corrects what it says of a key, and may turn it round."""

    about = About(
        "S121",
        "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
        "arXiv 2411.12537",
        (
            Claim("recurrent = parallel", f"{_TESTS}::test_both_forms_give_the_same_numbers"),
            Claim("an eigenvalue of -1 computes parity", f"{_TESTS}::test_eigenvalue_of_minus_one_is_parity"),
            Claim("eigenvalues that are not negative cannot flip", f"{_TESTS}::test_old_range_never_flips"),
            Claim("two reflections count modulo 3", f"{_TESTS}::test_two_reflections_count_modulo_three"),
            Claim("the state does not grow", f"{_TESTS}::test_state_does_not_grow"),
        ),
    )
    Config = DeltaNetConfig

    def __init__(self, config: DeltaNetConfig) -> None:
        if config.max_chunk * config.num_updates > _MAX_UPDATES:
            raise ArtifactError(
                f"{config.max_chunk} steps of {config.num_updates} updates are more than {_MAX_UPDATES} in one pass; "
                f"set max_chunk to {_MAX_UPDATES // config.num_updates} or less"
            )
        super().__init__(config, (DeltaNetBlock(config) for _ in range(config.num_layers)))
        self.config = config

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        heads = self.config.num_heads
        size = self.config.hidden_size // heads
        return (TensorSpec(name="memory", datatype="FP32", shape=(-1, heads, size, size)),)
