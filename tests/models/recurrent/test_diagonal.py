"""A diagonal recurrence: what factors below zero can do, with weights set by hand."""

import pytest
import torch
from torch import Tensor

from models.errors import ArtifactError
from models.recurrent.diagonal import Diagonal, DiagonalConfig, recurrent, scan
from tests.models.recurrent.sequences import check_no_look_ahead, check_passes_of_any_size, check_state

CONFIG = DiagonalConfig(vocab_size=5, num_classes=3, hidden_size=8, num_layers=2, max_chunk=11)


@pytest.fixture(scope="module")
def model() -> Diagonal:
    torch.manual_seed(0)
    return Diagonal(CONFIG).double().eval()


def walked(factors: Tensor, added: Tensor) -> Tensor:
    """Levels in chunks of 16, from 0: all [T]."""
    level, levels = torch.zeros(1, 1, dtype=factors.dtype), []
    for piece, plus in zip(factors.split(16), added.split(16), strict=True):
        levels.append(scan(piece.view(1, -1, 1), plus.view(1, -1, 1), level))
        level = levels[-1][:, -1]
    return torch.cat(levels, dim=1).flatten()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("length", [1, 5, 16])
def test_both_forms_give_the_same_numbers(length: int, dtype: torch.dtype, tolerance: float) -> None:
    random = torch.Generator().manual_seed(0)
    factors, added = (torch.randn(2, length, 3, generator=random, dtype=torch.float64) for _ in range(2))
    level = torch.randn(2, 3, generator=random, dtype=torch.float64).to(dtype)
    factors, added = factors.tanh().to(dtype), added.to(dtype)
    assert torch.allclose(scan(factors, added, level), recurrent(factors, added, level), rtol=tolerance, atol=tolerance)


def test_factor_of_minus_one_is_parity() -> None:
    bits = torch.randint(2, (1600,), generator=torch.Generator().manual_seed(0))
    levels = walked(1.0 - 2.0 * bits, bits.float())  # a 1 makes h of h to 1 - h
    assert torch.equal(levels, (bits.cumsum(0) % 2).float())


def test_old_range_keeps_order() -> None:
    # Of two levels the larger stays the larger whatever both read, where a 1 must swap odd and even.
    random = torch.Generator().manual_seed(0)
    factors, added = torch.rand(1, 16, 1, generator=random), torch.randn(1, 16, 1, generator=random)
    low, high = (scan(factors, added, torch.tensor([[level]])) for level in (0.0, 1.0))
    assert bool((high >= low).all())
    low, high = (scan(-factors, added, torch.tensor([[level]])) for level in (0.0, 1.0))
    assert bool((high[:, ::2] <= low[:, ::2]).all())
    # Of 1s alone it converges, where parity alternates.
    levels = walked(factors[0, :1, 0].expand(1600).double(), torch.ones(1600, dtype=torch.float64))
    assert bool((levels.diff() >= -1e-12).all())


def test_factors_stay_in_their_range() -> None:
    for is_signed, smallest in ((True, -1.0), (False, 0.0)):
        torch.manual_seed(0)
        factors = Diagonal(DiagonalConfig(is_signed=is_signed)).layers[0].factors(100 * torch.randn(2, 9, 32)).detach()  # type: ignore[operator,union-attr]
        assert smallest <= float(factors.min()) < smallest + 0.1
        assert float(factors.max()) <= 1.0


def test_passes_of_any_size_give_the_same_answers(model: Diagonal) -> None:
    with torch.inference_mode():
        check_passes_of_any_size(model, 1e-12)


def test_state_does_not_grow(model: Diagonal) -> None:
    with torch.inference_mode():
        check_state(model)


def test_no_answer_looks_ahead(model: Diagonal) -> None:
    with torch.inference_mode():
        check_no_look_ahead(model)


def test_pass_that_no_scan_reaches_is_refused() -> None:
    with pytest.raises(ArtifactError, match="max_chunk 17 is more than the 16 steps"):
        Diagonal(DiagonalConfig(max_chunk=17))
