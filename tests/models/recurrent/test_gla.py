"""Gated linear attention: one recurrence, three ways to compute it."""

import pytest
import torch
from torch import Tensor

from models.recurrent.gla import GLA, GLAConfig, chunked, parallel, recurrent
from tests.models.recurrent.sequences import check_no_look_ahead, check_passes_of_any_size, check_state

CONFIG = GLAConfig(vocab_size=11, num_classes=5, hidden_size=16, num_heads=2, num_layers=2, max_chunk=6)


def arguments(length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 3, length, 4), (2, 3, length, 4), (2, 3, length, 5), (2, 3, length, 4), (2, 3, 4, 5))
    q, k, v, decay, memory = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes)
    tensors = (q / 2, k, v, torch.nn.functional.logsigmoid(3 * decay) / 4, memory)
    return tuple(tensor.to(dtype) for tensor in tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("length", [1, 7, 24])
def test_three_forms_give_the_same_numbers(length: int, dtype: torch.dtype, tolerance: float) -> None:
    given = arguments(length, dtype)
    wanted = recurrent(*given)
    for found in (parallel(*given), chunked(*given, size=8), chunked(*given, size=24)):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_strong_decay_overflows_nowhere() -> None:
    q, k, v, _, memory = arguments(24, torch.float32)
    # exp(-cumsum) of this would be exp(2400).
    log_decay = torch.full((2, 3, 24, 4), -100.0)
    for read, after in (parallel(q, k, v, log_decay, memory), chunked(q, k, v, log_decay, memory, 8)):
        wanted = recurrent(q, k, v, log_decay, memory)
        assert torch.allclose(read, wanted[0], atol=1e-5)
        assert torch.allclose(after, wanted[1], atol=1e-5)


def test_without_decay_it_is_linear_attention() -> None:
    q, k, v, log_decay, memory = arguments(9, torch.float64)
    read, after = parallel(q, k, v, torch.zeros_like(log_decay), torch.zeros_like(memory))
    assert torch.allclose(read, (q @ k.transpose(-1, -2)).tril() @ v, atol=1e-12)
    assert torch.allclose(after, k.transpose(-1, -2) @ v, atol=1e-12)


@pytest.fixture(scope="module")
def model() -> GLA:
    torch.manual_seed(0)
    return GLA(CONFIG).double().eval()


def test_passes_of_any_size_give_the_same_answers(model: GLA) -> None:
    with torch.inference_mode():
        check_passes_of_any_size(model, 1e-12)


def test_state_does_not_grow(model: GLA) -> None:
    with torch.inference_mode():
        check_state(model)


def test_no_answer_looks_ahead(model: GLA) -> None:
    with torch.inference_mode():
        check_no_look_ahead(model)


def test_model_that_learns_gives_the_same_answers(model: GLA) -> None:
    steps = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, found = model(steps), model.train()(steps)
    model.eval()
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_ungated_model_does_not_fade() -> None:
    torch.manual_seed(0)
    layer = GLA(GLAConfig(hidden_size=16, num_heads=2, is_gated=False)).layers[0]
    _, _, _, log_decay = layer.attention.project(torch.randn(1, 3, 16))  # type: ignore[operator,union-attr]
    assert not log_decay.any()
