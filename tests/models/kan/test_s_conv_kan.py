"""S020 for images: a convolution whose kernel has functions, each place with a family of its own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ArtifactError
from models.kan.s_conv_kan import SConvKan, SConvKanConfig, SelectableConv, patches
from models.kan.selectable import SelectableLayer
from tests.models.kan.selection import exported, hardened, make_sure

SOFT = SConvKanConfig(num_classes=3, channels=(2, 3), num_functions=4, is_hard=False)


def images(count: int, size: int = 8) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_patches_are_those_of_a_convolution() -> None:
    pictures = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    wanted = F.unfold(pictures, 3, padding=1, stride=2).movedim(1, 2)  # [B, places, C * 9]
    assert torch.equal(patches(pictures).flatten(1, 2), wanted)


def test_the_export_of_a_one_hot_selection_is_the_soft_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = make_sure(SConvKan(SOFT)), images(5)
    with torch.inference_mode():
        wanted = model(inputs)
        assert torch.allclose(hardened(model)(inputs), wanted, atol=1e-6)
    assert torch.allclose(exported(hardened(model), tmp_path, inputs, "torchscript"), wanted, atol=1e-5)


def test_places_of_one_kernel_have_families_of_their_own() -> None:
    model = hardened(make_sure(SConvKan(SOFT)))
    layers = [layer for layer in model.modules() if isinstance(layer, SelectableLayer)]
    assert [len(layer.chosen) for layer in layers] == [9, 2 * 9, 3 * 4]
    assert len(layers[0].chosen.unique(dim=0)) > 1


def test_a_moved_image_moves_its_maps() -> None:
    torch.manual_seed(0)
    conv, pictures = SelectableConv(1, 4, SOFT), F.pad(images(2), (6, 6, 6, 6))  # [2, 1, 20, 20], empty around
    moved = torch.roll(pictures, (2, 4), dims=(2, 3))
    with torch.inference_mode():
        assert torch.allclose(conv(moved), torch.roll(conv(pictures), (1, 2), dims=(2, 3)), atol=1e-6)


def test_an_image_that_cannot_be_halved_so_often_is_refused() -> None:
    with pytest.raises(ArtifactError, match="image_size = 10 is not a multiple of 4, which 2 convolutions divide it"):
        SConvKanConfig(image_size=10)
