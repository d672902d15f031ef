"""TCNCA: how far its convolutions see, and what its attention does not."""

import pytest
import torch
from torch import Tensor

from models.recurrent.tcnca import TCNCA, ChunkedAttention, Convolutions, TCNCAConfig
from tests.models.recurrent.sequences import check_no_look_ahead, check_passes_of_any_size, check_state

CONFIG = TCNCAConfig(
    vocab_size=5, num_classes=3, hidden_size=8, chunk_size=4, num_convolutions=2, dilation_factor=2, max_chunk=7
)


@pytest.fixture(scope="module")
def model() -> TCNCA:
    torch.manual_seed(0)
    return TCNCA(CONFIG).double().eval()


@pytest.mark.parametrize(("kernel", "count", "factor"), [(3, 3, 2), (2, 3, 3), (5, 1, 4)])
def test_reach_is_that_of_the_formula(kernel: int, count: int, factor: int) -> None:
    config = TCNCAConfig(hidden_size=4, kernel_size=kernel, num_convolutions=count, dilation_factor=factor)
    torch.manual_seed(0)
    convolutions = Convolutions(config).double()
    steps = torch.zeros(1, 50, 4, dtype=torch.float64, requires_grad=True)
    past = torch.zeros(1, sum(config.tails), 4, dtype=torch.float64)
    convolutions(steps, past)[0][0, -1].sum().backward()
    assert steps.grad is not None
    seen = steps.grad.abs().sum(-1)[0].nonzero()
    assert 50 - int(seen.min()) == 1 + (kernel - 1) * (factor**count - 1) // (factor - 1)
    assert config.receptive_field == 50 - int(seen.min())


def attended(attention: ChunkedAttention, mixed: Tensor, hidden: Tensor) -> Tensor:
    """Chunk by chunk, the plain reference: [1, T, D]."""
    pieces = []
    for first in range(0, mixed.shape[1], attention.chunk_size):
        chunk = slice(first, first + attention.chunk_size)
        q, k, v = attention.query(mixed[0, chunk]), attention.key(mixed[0, chunk]), attention.value(hidden[0, chunk])
        ages = torch.arange(len(q)).unsqueeze(1) - torch.arange(len(q))
        scores = q @ k.T * attention.scale + attention.bias[ages.clamp(min=0)]
        pieces.append(attention.out(scores.masked_fill(ages < 0, -torch.inf).softmax(-1) @ v))
    return torch.cat(pieces).unsqueeze(0)


def test_attention_stays_within_its_chunk(model: TCNCA) -> None:
    attention = model.layers[0].attention
    assert isinstance(attention, ChunkedAttention)
    mixed, hidden = torch.randn(2, 1, 11, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count, keys, values, _ = model.empty_state(1)
    with torch.inference_mode():
        wanted = attended(attention, mixed, hidden)
        assert torch.allclose(attention(mixed, hidden, count, keys, values)[0], wanted, atol=1e-12)
        found = []
        for first, last in ((0, 3), (3, 4), (4, 11)):
            piece = slice(first, last)
            read, count, keys, values = attention(mixed[:, piece], hidden[:, piece], count, keys, values)
            found.append(read)
        assert torch.allclose(torch.cat(found, dim=1), wanted, atol=1e-12)
        assert int(count) == 11 % 4


def test_rows_may_be_at_different_places_of_their_chunks(model: TCNCA) -> None:
    steps = torch.randint(5, (1, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden = model.embed(steps)
        layer = model.layers[0]
        _, *ahead = layer(hidden[:, :3], *model.empty_state(1))
        both = [torch.cat(pair) for pair in zip(ahead, model.empty_state(1), strict=True)]
        together, *_ = layer(torch.cat((hidden[:, 3:], hidden[:, 3:])), *both)
        alone = [layer(hidden[:, 3:], *state)[0] for state in (ahead, model.empty_state(1))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)


def test_passes_of_any_size_give_the_same_answers(model: TCNCA) -> None:
    with torch.inference_mode():
        check_passes_of_any_size(model, 1e-12)


def test_state_does_not_grow(model: TCNCA) -> None:
    with torch.inference_mode():
        check_state(model)


def test_no_answer_looks_ahead(model: TCNCA) -> None:
    with torch.inference_mode():
        check_no_look_ahead(model)
