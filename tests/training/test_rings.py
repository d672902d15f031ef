"""The rings: what is drawn, that what is held out stays the same, and how right one can be."""

import pytest
import torch

from training.tasks.rings import Rings


def test_batches_depend_on_the_generator_alone_and_never_on_what_is_held_out() -> None:
    first, second, other = (Rings().batch(64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.inputs, other.inputs)
    assert torch.equal(Rings().heldout().inputs, Rings().heldout().inputs)


def test_a_ring_is_its_radius_blurred() -> None:
    drawn = Rings().batch(20_000, torch.Generator().manual_seed(0))
    radius = drawn.inputs.norm(dim=1)
    for ring in range(4):
        mine = radius[drawn.targets == ring]
        assert float(mine.mean()) == pytest.approx((ring + 1) / 4, abs=0.005)
        assert float(mine.std()) == pytest.approx(0.06, abs=0.005)
    assert drawn.inputs.mean(0).abs().max() < 0.02


def test_the_nearest_ring_is_right_as_often_as_can_be() -> None:
    """Two rings have a neighbour on both sides, two on one: 1 - 1.5 * P(blur > 1/8) is 97.2 %."""
    task = Rings()
    held = task.heldout()
    nearest = -(held.inputs.norm(dim=1, keepdim=True) - torch.tensor([[0.25, 0.5, 0.75, 1.0]])).abs()
    assert task.score(nearest, held.targets) == pytest.approx(97.2, abs=1.0)
