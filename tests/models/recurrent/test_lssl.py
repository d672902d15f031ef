"""Linear state-space layers: one system, as a recurrence, as a convolution and in continuous time."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ArtifactError
from models.recurrent.lssl import LSSL, LSSLConfig, StateSpace, bilinear, hippo
from tests.models.recurrent.sequences import check_no_look_ahead, check_passes_of_any_size, check_state

CONFIG = LSSLConfig(hidden_size=8, state_size=6, num_layers=2, max_chunk=7, timescales=(0.02, 0.1))


@pytest.fixture(scope="module")
def model() -> Iterator[LSSL]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield LSSL(CONFIG).eval()
    torch.set_default_dtype(torch.float32)


def looped(systems: StateSpace, u: Tensor) -> Tensor:
    """The definition, channel by channel, step by step: u [T, D] to y [T, D]."""
    a, b = hippo(CONFIG.state_size)
    channels = []
    for channel in range(CONFIG.hidden_size):
        scale, place = divmod(channel, CONFIG.hidden_size // len(CONFIG.timescales))
        discrete_a, discrete_b = bilinear(a, b, CONFIG.timescales[scale])
        x, y = torch.zeros(CONFIG.state_size, dtype=torch.float64), []
        for value in u[:, channel]:
            x = discrete_a @ x + discrete_b * value
            y.append(systems.read[scale, place] @ x + systems.skip[scale, place] * value)
        channels.append(torch.stack(y))
    return torch.stack(channels, dim=-1)


def test_recurrence_is_a_convolution(model: LSSL) -> None:
    systems = model.layers[0].systems
    assert isinstance(systems, StateSpace)
    u = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        (empty,) = model.empty_state(1)
        whole, after = systems(u, empty)
        assert torch.allclose(whole[0], looped(systems, u[0]), atol=1e-12)
        state, steps = empty, []
        for t in range(7):
            y, state = systems(u[:, t : t + 1], state)
            steps.append(y)
        assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-12)
        assert torch.allclose(state, after, atol=1e-12)


def test_kernel_in_float32_is_the_recurrence() -> None:
    torch.manual_seed(0)
    systems = StateSpace(LSSLConfig(hidden_size=8, state_size=16))
    u = torch.randn(2, 16, 8)
    with torch.inference_mode():
        empty = torch.zeros(2, 2, 4, 16)
        whole, _ = systems(u, empty)
        state, steps = empty, []
        for t in range(16):
            y, state = systems(u[:, t : t + 1], state)
            steps.append(y)
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-5)


def simulated(samples: Tensor, dt: float, size: int) -> Tensor:
    """The state after samples at steps of dt."""
    a, b = bilinear(*hippo(size), dt)
    x = torch.zeros(size, dtype=torch.float64)
    for sample in samples:
        x = a @ x + b * sample
    return x


def test_step_length_is_resampling() -> None:
    times = torch.arange(512, dtype=torch.float64) / 512
    signal = torch.sin(5 * times) + times
    dense, sparse = simulated(signal, 1 / 512, 6), simulated(signal[1::2], 2 / 512, 6)
    unscaled = simulated(signal[1::2], 1 / 512, 6)
    assert float((dense - sparse).norm() / dense.norm()) < 0.01
    assert float((dense - unscaled).norm() / dense.norm()) > 0.1


def test_state_holds_the_best_polynomial() -> None:
    # x' = A x + B u in log time is LegS: of the signal on (0, 1], weighted evenly, the first Legendre coefficients.
    size, count = 5, 20_000
    log_times = torch.linspace(-12, 0, count, dtype=torch.float64)
    times = log_times.exp()
    signal = 1 - 3 * times + 2 * times**3
    state = simulated(signal, 12 / (count - 1), size)
    points, weights = np.polynomial.legendre.leggauss(16)
    at = (points + 1) / 2
    wanted = [
        (2 * n + 1) ** 0.5
        * (weights / 2 * (1 - 3 * at + 2 * at**3) * np.polynomial.legendre.Legendre.basis(n)(points)).sum()
        for n in range(size)
    ]
    assert state.tolist() == pytest.approx(wanted, abs=2e-3)


def test_passes_of_any_size_give_the_same_answers(model: LSSL) -> None:
    with torch.inference_mode():
        check_passes_of_any_size(model, 1e-12)


def test_state_does_not_grow(model: LSSL) -> None:
    with torch.inference_mode():
        check_state(model)


def test_no_answer_looks_ahead(model: LSSL) -> None:
    with torch.inference_mode():
        check_no_look_ahead(model)


def test_channels_must_divide_among_timescales() -> None:
    with pytest.raises(ArtifactError, match="hidden_size 9 is no multiple of the 2 timescales"):
        LSSL(LSSLConfig(hidden_size=9))
