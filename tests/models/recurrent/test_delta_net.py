"""DeltaNet: what eigenvalues below zero can do, with weights set by hand."""

import math

import pytest
import torch
from torch import Tensor

from models.errors import ArtifactError
from models.recurrent.delta_net import DeltaNet, DeltaNetConfig, invert, parallel, recurrent
from tests.models.recurrent.sequences import check_no_look_ahead, check_passes_of_any_size, check_state

CONFIG = DeltaNetConfig(
    vocab_size=5, num_classes=3, hidden_size=16, num_layers=2, num_updates=2, max_chunk=8, max_trained=8
)


@pytest.fixture(scope="module")
def model() -> DeltaNet:
    torch.manual_seed(0)
    return DeltaNet(CONFIG).double().eval()


def bits(length: int) -> Tensor:
    return torch.randint(2, (1, length), generator=torch.Generator().manual_seed(0))


def walked(k: Tensor, v: Tensor, rate: Tensor, size: int, updates: int = 1) -> Tensor:
    """What is read with the query (1, 0, ...) in chunks of `size` updates: k [S, K], v [S, V], rate [S]; [T, V]."""
    memory = torch.zeros(1, 1, k.shape[-1], v.shape[-1], dtype=k.dtype)
    q = torch.zeros(1, 1, size // updates, k.shape[-1], dtype=k.dtype)
    q[..., 0] = 1
    read = []
    for first in range(0, len(k), size):
        piece = slice(first, first + size)
        found, memory = parallel(q, k[None, None, piece], v[None, None, piece], rate[None, None, piece], memory)
        read.append(found[0, 0])
    return torch.cat(read)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_both_forms_give_the_same_numbers(dtype: torch.dtype, tolerance: float, updates: int) -> None:
    random = torch.Generator().manual_seed(0)
    steps = 16 // updates
    q, k, v = (torch.randn(2, 3, length, 4, generator=random, dtype=torch.float64) for length in (steps, 16, 16))
    memory = torch.randn(2, 3, 4, 4, generator=random, dtype=torch.float64)
    rate = 2 * torch.rand(2, 3, 16, generator=random, dtype=torch.float64)
    given = (q / 2, torch.nn.functional.normalize(k, dim=-1), v, rate, memory)
    q, k, v, rate, memory = (tensor.to(dtype) for tensor in given)
    for ours, theirs in zip(parallel(q, k, v, rate, memory), recurrent(q, k, v, rate, memory), strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=10 * tolerance)


def test_inverse_of_sixteen_updates_is_exact() -> None:
    lower = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril(-1) / 4
    product = invert(lower) @ (torch.eye(16, dtype=torch.float64) + lower)
    assert torch.allclose(product, torch.eye(16, dtype=torch.float64), atol=1e-12)


def test_keys_that_are_alike_cost_no_precision() -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 16, 4, generator=random) for _ in range(3))
    k = torch.nn.functional.normalize(k[:, :, :1] + 0.01 * k, dim=-1)
    rate, memory = 1.9 + 0.1 * torch.rand(1, 1, 16, generator=random), torch.zeros(1, 1, 4, 4)
    for ours, theirs in zip(parallel(q, k, v, rate, memory), recurrent(q, k, v, rate, memory), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_eigenvalue_of_minus_one_is_parity() -> None:
    # Along the one key, rate 2 turns the memory round: m becomes 2 v - m, which with v = 1/2 is 1 - m.
    given = bits(1600)
    k, v = torch.ones(1600, 1), torch.full((1600, 1), 0.5)
    read = walked(k, v, 2.0 * given[0], 16)
    assert torch.equal(read[:, 0], (given[0].cumsum(0) % 2).float())


@pytest.mark.parametrize("seed", range(3))
def test_old_range_never_flips(seed: int) -> None:
    # Parity of 1s alone alternates for ever. The same step again and again takes a memory to its end from one side
    # alone, whatever the rate, the key and the value; a rate of 2 goes from one side to the other.
    random = torch.Generator().manual_seed(seed)
    rate, value = (torch.rand(1, generator=random, dtype=torch.float64) for _ in range(2))
    k = torch.nn.functional.normalize(torch.randn(1, 4, generator=random, dtype=torch.float64), dim=-1)
    length = 1600
    read = walked(k.expand(length, -1), value.expand(length, 1), rate.expand(length), 16)[:, 0]
    changes = read.diff()
    assert bool((changes >= -1e-12).all()) or bool((changes <= 1e-12).all())
    turned = walked(k.expand(length, -1), value.expand(length, 1), torch.full((length,), 2.0, dtype=torch.float64), 16)
    assert bool((turned.diff(dim=0)[1:] * turned.diff(dim=0)[:-1] < 0).all())


def test_two_reflections_count_modulo_three() -> None:
    # Reflections along two keys with 60 degrees between them turn the memory by 120 degrees; a 0 reflects twice along
    # one key, which is nothing. The first step's memory is written by a rate of 1 along the first axis.
    steps = torch.randint(2, (300,), generator=torch.Generator().manual_seed(0))
    steps[0] = 0
    keys = {0: torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 1: torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])}
    k = torch.cat([keys[int(step)] for step in steps]).double()
    rate, v = torch.full((600,), 2.0, dtype=torch.float64), torch.zeros(600, 1, dtype=torch.float64)
    rate[:2], v[0] = torch.tensor([1.0, 0.0]), 1.0
    read = walked(k, v, rate, 10, updates=2)[:, 0]
    # The first axis reads cos(120 degrees * count): 1 where the count is 0 modulo 3, else -1/2.
    wanted = torch.where(steps.cumsum(0) % 3 == 0, 1.0, -0.5).double()
    assert torch.allclose(read, wanted, atol=1e-9)


def test_passes_of_any_size_give_the_same_answers(model: DeltaNet) -> None:
    with torch.inference_mode():
        check_passes_of_any_size(model, 1e-11)


def test_state_does_not_grow(model: DeltaNet) -> None:
    with torch.inference_mode():
        check_state(model)


def test_no_answer_looks_ahead(model: DeltaNet) -> None:
    with torch.inference_mode():
        check_no_look_ahead(model)


def test_rates_stay_in_their_range() -> None:
    for is_signed, largest in ((True, 2.0), (False, 1.0)):
        torch.manual_seed(0)
        rule = DeltaNet(DeltaNetConfig(is_signed=is_signed)).layers[0].rule
        *_, rate = rule.project(100 * torch.randn(2, 9, 32))  # type: ignore[operator,union-attr]
        rate = rate.detach()
        assert float(rate.min()) >= 0
        assert largest / 2 < float(rate.max()) <= largest


def test_pass_of_too_many_updates_is_refused() -> None:
    with pytest.raises(ArtifactError, match="set max_chunk to 8 or less"):
        DeltaNet(DeltaNetConfig(max_chunk=16, num_updates=2))
