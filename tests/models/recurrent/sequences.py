"""What holds of every recurrent stack, asked of one with random weights; and random steps for it."""

import torch
from torch import Tensor

from models.chain import Chain
from models.layered import SequenceStack


def steps_of(model: SequenceStack, batch: int, length: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    if model.vocab_size:
        return torch.randint(model.vocab_size, (batch, length), generator=random)
    features = model.inputs[0].shape[2]  # type: ignore[attr-defined]
    like = next(model.parameters())
    return torch.randn(batch, length, features, generator=random, dtype=torch.float64).to(like.dtype)


def passes(model: SequenceStack, steps: Tensor, sizes: list[int], chain: Chain) -> Tensor:
    """Outputs of a walk in passes of the given sizes."""
    states = [model.empty_state(len(steps)) for _ in chain.layers]
    outputs = []
    for piece in torch.split(steps, sizes, dim=1):
        hidden = model.embed(piece)
        for visit, layer in enumerate(chain.layers):
            hidden, *state = model.layers[layer](hidden, *states[visit])
            states[visit] = tuple(state)
        outputs.append(model.head(hidden))
    return torch.cat(outputs, dim=1)


def check_passes_of_any_size(model: SequenceStack, tolerance: float) -> None:
    """Step by step, in uneven passes, and whole: the same, along chains that skip and repeat too."""
    length = 2 * model.max_chunk + 3
    steps, full = steps_of(model, 3, length), Chain.full(len(model.layers))
    for chain in (full, Chain((len(model.layers) - 1, 0, 0))):
        whole = model.along({"steps": steps}, chain)
        assert whole.shape[:2] == (3, length)
        for sizes in ([1] * length, [model.max_chunk - 1, 1, model.max_chunk, 3]):
            assert torch.allclose(passes(model, steps, sizes, chain), whole, rtol=0, atol=tolerance)
    assert torch.allclose(model(steps), model.along({"steps": steps}, full), rtol=0, atol=tolerance)


def check_state(model: SequenceStack) -> None:
    """Of the shapes it says, the same for every layer and after any number of steps; a row's is its own."""
    for layer in model.layers:
        state = model.empty_state(2)
        for length in (1, model.max_chunk):
            hidden = model.embed(steps_of(model, 2, length))
            alone = layer(hidden[1:], *(tensor[1:] for tensor in state))
            out, *state = layer(hidden, *state)
            assert out.shape == hidden.shape
            assert [(2, *spec.shape[1:]) for spec in model.state] == [tuple(tensor.shape) for tensor in state]
            for ours, theirs in zip((out, *state), alone, strict=True):
                assert torch.allclose(ours[1:].double(), theirs.double(), atol=1e-12)


def check_no_look_ahead(model: SequenceStack) -> None:
    """Later steps change no earlier answer."""
    length = model.max_chunk + 5
    steps, others = steps_of(model, 2, length), steps_of(model, 2, length, seed=1)
    mixed = torch.cat((steps[:, :-4], others[:, -4:]), dim=1)
    first, second = model(steps), model(mixed)
    assert torch.allclose(first[:, :-4], second[:, :-4], rtol=0, atol=1e-12)
    assert not torch.allclose(first[:, -4:], second[:, -4:], rtol=0, atol=1e-3)
