"""Aaren: softmax attention on every prefix, in constant memory."""

import pytest
import torch
from torch import Tensor

from models.recurrent.aaren import Aaren, AarenConfig, join, prefixes
from tests.models.recurrent.sequences import check_no_look_ahead, check_passes_of_any_size, check_state

CONFIG = AarenConfig(hidden_size=16, num_heads=2, num_layers=2, max_chunk=6)


@pytest.fixture(scope="module")
def model() -> Aaren:
    torch.manual_seed(0)
    return Aaren(CONFIG).double().eval()


def drawn(length: int, dtype: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(2, 3, length, generator=random, dtype=torch.float64)
    return scores.to(dtype), torch.randn(2, 3, length, 4, generator=random, dtype=torch.float64).to(dtype)


def nothing(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, 4, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_scan_is_softmax_on_every_prefix(spread: float, dtype: torch.dtype, tolerance: float) -> None:
    scores, values = drawn(13, dtype, spread)
    state, found = nothing(dtype), []
    for first, last in ((0, 5), (5, 6), (6, 13)):
        m, u, w = prefixes(scores[:, :, first:last], values[:, :, first:last], *state)
        found.append(w / u.unsqueeze(-1))
        state = (m[:, :, -1], u[:, :, -1], w[:, :, -1])
    read = torch.cat(found, dim=2)
    for t in range(13):
        wanted = (scores[:, :, None, : t + 1].softmax(-1) @ values[:, :, : t + 1]).squeeze(2)
        assert torch.allclose(read[:, :, t], wanted, rtol=0, atol=tolerance)


def test_joining_is_associative() -> None:
    scores, values = drawn(3, torch.float64, 5.0)
    first, second, third = ((scores[:, :, t], torch.ones_like(scores[:, :, t]), values[:, :, t]) for t in range(3))
    left, right = join(join(first, second), third), join(first, join(second, third))
    scanned = tuple(part[:, :, 2] for part in prefixes(scores, values, *nothing(torch.float64)))
    for one, other, whole in zip(left, right, scanned, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
        assert torch.allclose(one, whole, atol=1e-12)


def test_zeros_are_nothing_yet_even_where_every_score_is_far_below() -> None:
    scores, values = drawn(4, torch.float32)
    read = [w / u.unsqueeze(-1) for _, u, w in (prefixes(scores - 1000, values, *nothing(torch.float32)),)]
    wanted = [w / u.unsqueeze(-1) for _, u, w in (prefixes(scores, values, *nothing(torch.float32)),)]
    assert torch.allclose(read[0], wanted[0], atol=1e-3)


def test_query_is_one_vector_a_layer(model: Aaren) -> None:
    for layer in model.layers:
        assert layer.query.numel() == CONFIG.hidden_size  # type: ignore[operator,union-attr]


def test_passes_of_any_size_give_the_same_answers(model: Aaren) -> None:
    with torch.inference_mode():
        check_passes_of_any_size(model, 1e-12)


def test_state_does_not_grow(model: Aaren) -> None:
    with torch.inference_mode():
        check_state(model)


def test_no_answer_looks_ahead(model: Aaren) -> None:
    with torch.inference_mode():
        check_no_look_ahead(model)
