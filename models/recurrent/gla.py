"""S100, gated linear attention ("Gated Linear Attention Transformers with Hardware-Efficient Training").

S_t = diag(a_t) S_{t-1} + k_t^T v_t and o_t = q_t S_t / sqrt(K), each key channel with a decay a_t of its own that the
step decides: a_t = sigmoid(x_t W_1 W_2 + b)^(1/16) with a W_1 of rank 16 (section 4.4). The same numbers come out of
a loop over steps, of one product over all pairs of steps, and of chunks that hand S on (section 4.1 to 4.3).
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.recurrent.steps import FeedForward, StepConfig, StepStack

_TESTS = "tests/models/recurrent/test_gla.py"
# sigmoid(.)^(1/16): decays begin near 1, so that what is read early is still there late.
_TEMPERATURE = 16.0


@dataclass(frozen=True, slots=True)
class GLAConfig(StepConfig):
    """Keys take half of `hidden_size`, values all of it; `is_gated` = False is linear attention without decay."""

    num_heads: int = 4
    gate_rank: int = 16
    is_gated: bool = True


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Step by step, the plain reference (section 4.1).

    q, k, log_decay [B, H, T, K], v [B, H, T, V], memory [B, H, K, V]. Returns what is read [B, H, T, V], and the
    memory after the last step.
    """
    read = []
    for t in range(q.shape[2]):
        memory = log_decay[:, :, t].exp().unsqueeze(-1) * memory + k[:, :, t].unsqueeze(-1) * v[:, :, t].unsqueeze(-2)
        read.append((q[:, :, t].unsqueeze(-2) @ memory).squeeze(-2))
    return torch.stack(read, dim=2), memory


def parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """All steps of one chunk at once; shapes as of `recurrent`, any axes before [T, K].

    Exponents are differences of summed log-decays and never positive, so that nothing overflows, whatever the decays.
    """
    passed = log_decay.cumsum(-2)
    between = (passed.unsqueeze(-2) - passed.unsqueeze(-3)).clamp(max=0.0)  # [..., T, S, K], right where S <= T
    weights = (q.unsqueeze(-2) * k.unsqueeze(-3) * between.exp()).sum(-1).tril()
    read = weights @ v + (q * passed.exp()) @ memory
    last = passed[..., -1:, :]
    kept = (k * (last - passed).exp()).transpose(-1, -2) @ v
    return read, last.exp().transpose(-1, -2) * memory + kept


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Any number of steps, all chunks of `size` at once (section 4.2); as `recurrent`."""
    num_steps = q.shape[2]
    # Steps that add nothing and decay nothing fill up the last chunk.
    q, k, v, log_decay = (
        torch.unflatten(F.pad(tensor, (0, 0, 0, -num_steps % size)), 2, (-1, size)) for tensor in (q, k, v, log_decay)
    )  # [B, H, N, size, .]
    nothing = memory.new_zeros(()).expand(*k.shape[:3], *memory.shape[2:])
    within, added = parallel(q, k, v, log_decay, nothing)
    passed = log_decay.cumsum(-2)
    after = _handed_on(passed[..., -1, :, None].exp(), added, memory)
    before = torch.cat((memory.unsqueeze(2), after[:, :, :-1]), dim=2)
    read = within + (q * passed.exp()) @ before
    return read.flatten(2, 3)[:, :, :num_steps], after[:, :, -1]


def _handed_on(decays: Tensor, added: Tensor, memory: Tensor) -> Tensor:
    """The memory after each chunk [B, H, N, K, V], in rounds that join twice as many chunks each.

    decays [B, H, N, K, 1] and added [B, H, N, K, V] are those of the chunks, memory [B, H, K, V] is before the first.
    """
    num_chunks, shift = added.shape[2], 1
    while shift < num_chunks:
        added = added + decays * F.pad(added, (0, 0, 0, 0, shift, 0))[:, :, :num_chunks]
        decays = decays * F.pad(decays, (0, 0, 0, 0, shift, 0), value=1.0)[:, :, :num_chunks]
        shift *= 2
    return added + decays * memory.unsqueeze(2)


class GatedLinearAttention(nn.Module):
    """Queries, keys, values and decays of every step, and how what is read comes back to the stream (section 4.4)."""

    def __init__(self, config: GLAConfig) -> None:
        super().__init__()
        width, keys = config.hidden_size, config.hidden_size // 2
        self.num_heads, self.is_gated = config.num_heads, config.is_gated
        self.scale = (keys // config.num_heads) ** -0.5
        self.query, self.key = nn.Linear(width, keys, bias=False), nn.Linear(width, keys, bias=False)
        self.value, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_down = nn.Linear(width, config.gate_rank, bias=False)
        self.gate_up = nn.Linear(config.gate_rank, keys)
        self.out_gate = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width // config.num_heads, eps=1e-5)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, T, D] -> q, k [B, H, T, K], v [B, H, T, V], log_decay [B, H, T, K]"""
        # Not logsigmoid: runtimes compute it as log(sigmoid), which has no digits left where the gate is nearly shut.
        log_decay = -F.softplus(-self.gate_up(self.gate_down(hidden))) / _TEMPERATURE
        if not self.is_gated:
            log_decay = torch.zeros_like(log_decay)
        q, k = self.split(self.query(hidden)) * self.scale, self.split(self.key(hidden))
        return q, k, self.split(self.value(hidden)), self.split(log_decay)

    def split(self, joined: Tensor) -> Tensor:
        """[B, T, H * K] -> [B, H, T, K]"""
        return torch.unflatten(joined, -1, (self.num_heads, -1)).transpose(1, 2)

    def join(self, read: Tensor, hidden: Tensor) -> Tensor:
        """[B, H, T, V] -> [B, T, D]: a norm for each head, a swish gate."""
        joined: Tensor = self.out(self.norm(read.transpose(1, 2)).flatten(2) * F.silu(self.out_gate(hidden)))
        return joined


class GLABlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to the stream."""

    def __init__(self, config: GLAConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.attention = GatedLinearAttention(config)
        self.feed_forward = FeedForward(config.hidden_size, config.expansion)

    def forward(self, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: hidden [B, T, D], memory [B, H, K, V]; both come out as they go in."""
        normed = self.norm(hidden)
        q, k, v, log_decay = self.attention.project(normed)
        read, after = parallel(q, k, v, log_decay, memory)
        return self.feed_forward(hidden + self.attention.join(read, normed)), after

    def over(self, hidden: Tensor, size: int) -> Tensor:
        """All steps [B, T, D] from the first on, in chunks of `size` at once."""
        normed = self.norm(hidden)
        q, k, v, log_decay = self.attention.project(normed)
        empty = q.new_zeros(q.shape[0], q.shape[1], q.shape[3], v.shape[3])
        read, _ = chunked(q, k, v, log_decay, empty, size)
        updated: Tensor = self.feed_forward(hidden + self.attention.join(read, normed))
        return updated


class GLA(StepStack):
    """A sequence model whose memory fades as each step decides."""

    about = About(
        "S100",
        "Gated Linear Attention Transformers with Hardware-Efficient Training",
        "arXiv 2312.06635",
        (
            Claim("recurrent = parallel = chunked", f"{_TESTS}::test_three_forms_give_the_same_numbers"),
            Claim("the state does not grow", f"{_TESTS}::test_state_does_not_grow"),
            Claim("no decay, however strong, overflows", f"{_TESTS}::test_strong_decay_overflows_nowhere"),
        ),
    )
    Config = GLAConfig

    def __init__(self, config: GLAConfig) -> None:
        super().__init__(config, (GLABlock(config) for _ in range(config.num_layers)))
        self.config = config

    def forward(self, *inputs: Tensor) -> Tensor:
        """Steps [B, T, ...] to outputs [B, T, C]; while it learns, every layer goes over all chunks at once."""
        if not self.training:
            return super().forward(*inputs)
        hidden = self.embed(inputs[0])
        for layer in self.layers:
            hidden = cast("GLABlock", layer).over(hidden, self.max_chunk)
        outputs: Tensor = self.head(hidden)
        return outputs

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        heads, width = self.config.num_heads, self.config.hidden_size
        return (TensorSpec(name="memory", datatype="FP32", shape=(-1, heads, width // 2 // heads, width // heads)),)
