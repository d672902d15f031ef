"""Strip-MLP: what a strip hears, how far one block reaches, and what it normalises over."""

import pytest
import torch

from models.errors import ArtifactError
from models.mixers.strip_mlp import (
    CascadeGroupStripMixing,
    LocalStripMixing,
    RelativePosition,
    ResponseNorm,
    StripLayer,
    StripMLPConfig,
)

CONFIG = StripMLPConfig(image_size=12, hidden_size=16, share_size=4)  # 6x6 tokens, halves of 8 channels


def test_a_strip_layer_is_the_sum_it_stands_for() -> None:
    torch.manual_seed(0)
    layer, hidden = StripLayer(num_groups=2, strip_length=5, strip_width=3), torch.randn(2, 4, 5, 6)
    weight = layer.mix.weight.view(2, 5, 5, 3)  # [G, L out, L in, K]
    bias = layer.mix.bias.view(2, 5)
    wanted = torch.zeros_like(hidden)
    for strip in range(4):
        for channel in range(6):
            group = channel % 2
            wanted[:, strip, :, channel] = bias[group]
            for beside in (-1, 0, 1):
                if 0 <= strip + beside < 4:
                    heard = hidden[:, strip + beside, :, channel]
                    wanted[:, strip, :, channel] += heard @ weight[group, :, :, beside + 1].T
    torch.testing.assert_close(layer(hidden), wanted, atol=1e-5, rtol=0)


def test_a_strip_depends_on_itself_and_its_neighbours_alone() -> None:
    torch.manual_seed(0)
    layer, hidden = StripLayer(num_groups=2, strip_length=6, strip_width=3), torch.randn(1, 6, 6, 4)
    before = layer(hidden)
    hidden[0, 3, 1, 2] += 1
    changed = (layer(hidden) != before)[0].nonzero()
    assert set(changed[:, 0].tolist()) == {2, 3, 4}  # strips
    assert set(changed[:, 1].tolist()) == set(range(6))  # every token of each
    assert set(changed[:, 2].tolist()) == {2}  # no other channel


def test_the_cascade_reaches_every_token() -> None:
    torch.manual_seed(0)
    mixing, hidden = CascadeGroupStripMixing(CONFIG), torch.randn(1, 6, 6, 8)
    before = mixing(hidden)
    hidden[0, 0, 0, 0] += 1
    assert (mixing(hidden) != before)[0].any(-1).all()


def test_local_mixing_is_a_weighed_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    mixing, hidden = LocalStripMixing(CONFIG), torch.randn(2, 6, 6, 8)
    torch.nn.init.zeros_(mixing.weigh.weight)
    mixing.weigh.bias.data = torch.tensor([0.0, 0.0, 50.0]).repeat(8)  # all the weight on the input
    torch.testing.assert_close(mixing(hidden), hidden)
    mixing.weigh.bias.data = torch.tensor([0.0, 50.0, 0.0]).repeat(8)  # all on the wide convolution
    wide = mixing.wide(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixing(hidden), wide)


def test_a_place_is_known_by_its_distance_from_the_diagonal() -> None:
    places = RelativePosition(4, 3)()
    assert places.shape == (4, 4, 3)
    assert torch.equal(places[0, 1], places[2, 3])
    assert len({tuple(place.tolist()) for place in places.flatten(0, 1)}) == 7


def test_response_norm_starts_as_nothing_and_learns_from_silent_channels() -> None:
    norm, hidden = ResponseNorm(4), torch.randn(2, 3, 3, 4)
    torch.testing.assert_close(norm(hidden), hidden)
    silent = torch.zeros(2, 3, 3, 4, requires_grad=True)
    torch.nn.init.ones_(norm.gain)
    norm(silent).sum().backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"hidden_size of 20 .* share_size 4; choose a multiple of 8"):
        StripMLPConfig(hidden_size=20)
    with pytest.raises(ArtifactError, match=r"strip_width 2 and local_length 7 .* choose odd numbers"):
        StripMLPConfig(strip_width=2)
