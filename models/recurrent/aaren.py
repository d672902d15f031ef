"""S104, Aaren ("Attention as an RNN"): softmax attention whose query is learned, and so the same at every step.

Of all steps so far three numbers of each head are enough (section 3.1): m the largest score s_i, u = sum exp(s_i - m),
and w = sum exp(s_i - m) v_i; attention over the prefix is w / u. Two such triples join into that of both their steps
(section 3.2), so that all prefixes of a chunk are computed at once and joined with what came before. The paper projects
a learned token to the query; the projection of a learned vector is a learned vector, which is what is kept here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.recurrent.steps import FeedForward, StepConfig, StepStack

_TESTS = "tests/models/recurrent/test_aaren.py"
# A score that no step has: its weight beside any other is 0.
_NEVER = -1e30


@dataclass(frozen=True, slots=True)
class AarenConfig(StepConfig):
    """num_heads: queries of a block, each with its share of the channels."""

    num_heads: int = 4
    expansion: int = 4


def join(first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The triple (m, u, w) of the steps of both, the operator of the scan (section 3.2); m, u [...], w [..., V]."""
    (m_a, u_a, w_a), (m_b, u_b, w_b) = first, second
    m = torch.maximum(m_a, m_b)
    a, b = (m_a - m).exp(), (m_b - m).exp()
    return m, u_a * a + u_b * b, w_a * a.unsqueeze(-1) + w_b * b.unsqueeze(-1)


def prefixes(
    scores: Tensor, values: Tensor, largest: Tensor, weight: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The triple after every step of a chunk, of scores [B, H, T], values [B, H, T, V] and the triple before it.

    That is m, u [B, H] and w [B, H, V]; a weight u of 0 says that nothing was read yet, whatever `largest` is. Returns
    m, u [B, H, T] and w [B, H, T, V].
    """
    steps = torch.arange(scores.shape[2], device=scores.device)
    later = steps.unsqueeze(0) > steps.unsqueeze(1)  # [T, S]
    seen = scores.unsqueeze(2).masked_fill(later, _NEVER)
    before = largest.masked_fill(weight <= 0, _NEVER).unsqueeze(-1)
    m = torch.maximum(seen.amax(-1), before)
    weights, kept = (seen - m.unsqueeze(-1)).exp(), (before - m).exp()
    u = weights.sum(-1) + kept * weight.unsqueeze(-1)
    return m, u, weights @ values + kept.unsqueeze(-1) * total.unsqueeze(2)


class AarenBlock(nn.Module):
    """Pre-norm attention with a learned query, and a feed-forward, each added to the stream."""

    def __init__(self, config: AarenConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.scale = config.num_heads, (width // config.num_heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(config.num_heads, width // config.num_heads))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = FeedForward(width, config.expansion)

    def forward(
        self, hidden: Tensor, largest: Tensor, weight: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One chunk: hidden [B, T, D], largest and weight [B, H], total [B, H, V]; all come out as they go in."""
        normed = self.norm(hidden)
        keys, values = self.split(self.key(normed)), self.split(self.value(normed))
        scores = (keys * self.query.unsqueeze(1)).sum(-1) * self.scale
        m, u, w = prefixes(scores, values, largest, weight, total)
        read = (w / u.unsqueeze(-1)).transpose(1, 2).flatten(2)
        return self.feed_forward(hidden + self.out(read)), m[:, :, -1], u[:, :, -1], w[:, :, -1]

    def split(self, joined: Tensor) -> Tensor:
        """[B, T, H * K] -> [B, H, T, K]"""
        return torch.unflatten(joined, -1, (self.num_heads, -1)).transpose(1, 2)


class Aaren(StepStack):
    """A sequence model of softmax attention in constant memory."""

    about = About(
        "S104",
        "Attention as an RNN",
        "arXiv 2405.13956",
        (
            Claim("the scan is softmax attention on every prefix", f"{_TESTS}::test_scan_is_softmax_on_every_prefix"),
            Claim("joining triples is associative", f"{_TESTS}::test_joining_is_associative"),
            Claim("memory is constant in the number of steps", f"{_TESTS}::test_state_does_not_grow"),
            Claim("one learned vector a layer is all that is added", f"{_TESTS}::test_query_is_one_vector_a_layer"),
        ),
    )
    Config = AarenConfig

    def __init__(self, config: AarenConfig) -> None:
        super().__init__(config, (AarenBlock(config) for _ in range(config.num_layers)))
        self.config = config

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        heads = self.config.num_heads
        return (
            TensorSpec(name="largest", datatype="FP32", shape=(-1, heads)),
            TensorSpec(name="weight", datatype="FP32", shape=(-1, heads)),
            TensorSpec(name="total", datatype="FP32", shape=(-1, heads, self.config.hidden_size // heads)),
        )
