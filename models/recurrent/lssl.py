"""S101, linear state-space layer ("Combining Recurrent, Convolutional, and Continuous-time Models with LSSLs").

Every channel is a system x' = A x + B u, y = C x + D u in continuous time. A and B are HiPPO-LegS, which keeps the best
polynomials through all that was read; a step of length dt makes of them, by the bilinear rule,
A' = (I - dt/2 A)^-1 (I + dt/2 A) and B' = (I - dt/2 A)^-1 dt B. Then y is a recurrence, x_t = A' x_{t-1} + B' u_t, and
as well a convolution with K_i = C A'^i B' (section 3). A, B and the lengths of steps are fixed here, C and D learned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.recurrent.steps import FeedForward, StepConfig, StepStack

_TESTS = "tests/models/recurrent/test_lssl.py"


@dataclass(frozen=True, slots=True)
class LSSLConfig(StepConfig):
    """timescales: lengths dt of a step, each for an equal part of the channels; state_size: N numbers of a channel."""

    state_size: int = 16
    timescales: tuple[float, ...] = (0.015625, 0.0625)
    max_chunk: int = 16


def hippo(size: int) -> tuple[Tensor, Tensor]:
    """A [N, N] and B [N] of HiPPO-LegS, float64 (section 4.1)."""
    order = torch.arange(size, dtype=torch.float64)
    root = (2 * order + 1).sqrt()
    return -(torch.outer(root, root).tril(-1) + torch.diag(order + 1)), root


def bilinear(a: Tensor, b: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """A' [N, N] and B' [N] of steps of length `dt` (section 2)."""
    one = torch.eye(len(a), dtype=a.dtype)
    forward = one + dt / 2 * a
    both = torch.linalg.solve(one - dt / 2 * a, torch.cat((forward, dt * b.unsqueeze(-1)), dim=-1))
    return both[:, :-1], both[:, -1]


def powers(a: Tensor, count: int) -> Tensor:
    """A'^0 to A'^(count - 1), [count, N, N]."""
    found = [torch.eye(len(a), dtype=a.dtype)]
    for _ in range(count - 1):
        found.append(a @ found[-1])
    return torch.stack(found)


class StateSpace(nn.Module):
    """The systems of all channels: what the solver gives is baked in, a pass is products of matrices."""

    def __init__(self, config: LSSLConfig) -> None:
        super().__init__()
        self.num_scales = len(config.timescales)
        width = config.hidden_size // self.num_scales
        a, b = hippo(config.state_size)
        steps = [bilinear(a, b, dt) for dt in config.timescales]
        baked = [powers(discrete, config.max_chunk + 1) for discrete, _ in steps]
        answers = [power[:-1] @ discrete for power, (_, discrete) in zip(baked, steps, strict=True)]
        precision = torch.get_default_dtype()
        self.register_buffer("powers", torch.stack(baked).to(precision))  # A'^i, [G, max_chunk + 1, N, N]
        self.register_buffer("responses", torch.stack(answers).to(precision))  # A'^i B', [G, max_chunk, N]
        self.powers: Tensor
        self.responses: Tensor
        self.read = nn.Parameter(torch.randn(self.num_scales, width, config.state_size) * config.state_size**-0.5)  # C
        self.skip = nn.Parameter(torch.ones(self.num_scales, width))  # D

    def forward(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: u [B, T, D], state [B, G, M, N] of M channels at each of G lengths; both as they go in.

        The convolution as a Toeplitz matrix, and what the state before it still says.
        """
        num_steps = u.shape[1]
        u = torch.unflatten(u, -1, (self.num_scales, -1))  # [B, T, G, M]
        moved, responses = self.powers[:, 1 : num_steps + 1], self.responses[:, :num_steps]
        kernel = torch.einsum("gmn,gin->gmi", self.read, responses)
        ages = torch.arange(num_steps, device=u.device)
        ages = ages.unsqueeze(-1) - ages  # [T, S], how long ago S was
        toeplitz = kernel[:, :, ages.clamp(min=0)].tril()  # [G, M, T, S]
        y = torch.einsum("gmts,bsgm->btgm", toeplitz, u) + self.skip * u
        y = y + torch.einsum("gmn,gtnk,bgmk->btgm", self.read, moved, state)
        state = torch.einsum("gnk,bgmk->bgmn", moved[:, -1], state)
        return y.flatten(2), state + torch.einsum("gin,bigm->bgmn", responses.flip(1), u)


class LSSLBlock(nn.Module):
    """Pre-norm systems, mixed over the channels, and a feed-forward, each added to the stream."""

    def __init__(self, config: LSSLConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.systems = StateSpace(config)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.feed_forward = FeedForward(config.hidden_size, config.expansion)

    def forward(self, hidden: Tensor, system_state: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: hidden [B, T, D], state [B, G, M, N]; both come out as they go in."""
        y, after = self.systems(self.norm(hidden), system_state)
        return self.feed_forward(hidden + self.mix(F.gelu(y))), after


class LSSL(StepStack):
    """A sequence model of linear systems that remember polynomials of what they read."""

    about = About(
        "S101",
        "Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers",
        "arXiv 2110.13985",
        (
            Claim("recurrence = convolution", f"{_TESTS}::test_recurrence_is_a_convolution"),
            Claim("half of the samples at twice the step give the same", f"{_TESTS}::test_step_length_is_resampling"),
            Claim("HiPPO-LegS remembers polynomials", f"{_TESTS}::test_state_holds_the_best_polynomial"),
            Claim("the state does not grow", f"{_TESTS}::test_state_does_not_grow"),
        ),
    )
    Config = LSSLConfig

    def __init__(self, config: LSSLConfig) -> None:
        if config.hidden_size % len(config.timescales):
            raise ArtifactError(
                f"hidden_size {config.hidden_size} is no multiple of the {len(config.timescales)} timescales; "
                "each needs as many channels"
            )
        super().__init__(config, (LSSLBlock(config) for _ in range(config.num_layers)))
        self.config = config

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        scales = len(self.config.timescales)
        shape = (-1, scales, self.config.hidden_size // scales, self.config.state_size)
        return (TensorSpec(name="system_state", datatype="FP32", shape=shape),)
