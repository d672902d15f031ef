"""S020, S-ConvKAN ("Activation Space Selectable Kolmogorov-Arnold Networks", arXiv 2408.08338): for images.

A convolution whose kernel has a function instead of a number at each of its places: the patch around a pixel is read
by the layer of S-KAN, whose nodes are the places of the kernel. Each place chooses its family.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.kan.affine import FixedAffine
from models.kan.s_kan import SOFT, check_functions
from models.kan.selectable import SelectableLayer, harden
from models.layered import Whole

_TESTS = "tests/models/kan/test_s_conv_kan.py"
_KERNEL, _STRIDE = 3, 2


@dataclass(frozen=True, slots=True)
class SConvKanConfig:
    """channels: of the convolutions, each of which halves the image. num_functions: of each family."""

    image_channels: int = 1
    image_size: int = 8
    num_classes: int = 10
    channels: tuple[int, ...] = (8, 16)
    num_functions: int = 5
    is_hard: bool = True

    def __post_init__(self) -> None:
        check_functions(self.num_functions)
        if self.image_size % self.reduction:
            raise ArtifactError(
                f"image_size = {self.image_size} is not a multiple of {self.reduction}, which {len(self.channels)} "
                "convolutions divide it by; take fewer channels"
            )

    @property
    def reduction(self) -> int:
        """How much smaller the image is after all convolutions, in each direction."""
        return int(_STRIDE ** len(self.channels))


class SelectableConv(nn.Module):
    """A 3 x 3 convolution of stride two with a function at each place of its kernel."""

    def __init__(self, num_inputs: int, num_outputs: int, config: SConvKanConfig) -> None:
        super().__init__()
        nodes = num_inputs * _KERNEL * _KERNEL
        self.layer = SelectableLayer(nodes, num_outputs, config.num_functions, config.is_hard)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H / 2, W / 2]"""
        made: Tensor = self.layer(patches(images))
        return made.movedim(-1, 1)


class SConvKan(Whole):
    """A classifier of images."""

    about = About(
        "S020",
        "Activation Space Selectable Kolmogorov-Arnold Networks",
        "arXiv 2408.08338",
        (
            Claim(
                "the hard form of a one-hot selection is the soft net, exported too",
                f"{_TESTS}::test_the_export_of_a_one_hot_selection_is_the_soft_net",
            ),
            Claim("an image moved by a stride moves its maps", f"{_TESTS}::test_a_moved_image_moves_its_maps"),
        ),
    )
    Config = SConvKanConfig

    def __init__(self, config: SConvKanConfig) -> None:
        super().__init__()
        self.config = config
        self.units = FixedAffine(1)
        sizes = (config.image_channels, *config.channels)
        self.convs = nn.Sequential(*(SelectableConv(a, b, config) for a, b in pairwise(sizes)))
        places = (config.image_size // config.reduction) ** 2
        self.classes = SelectableLayer(sizes[-1] * places, config.num_classes, config.num_functions, config.is_hard)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, classes]"""
        (images,) = inputs
        logits: Tensor = self.classes(self.convs(self.units(images)).flatten(1))
        return logits

    def harden(self) -> None:
        """Make every place of every kernel the family it prefers, in place."""
        harden(self)
        self.config = replace(self.config, is_hard=True)

    @property
    def unservable(self) -> str:
        return "" if self.config.is_hard else SOFT

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        size = self.config.image_size
        return (TensorSpec(name="images", datatype="FP32", shape=(-1, self.config.image_channels, size, size)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", datatype="FP32", shape=(-1, self.config.num_classes)),)


def patches(images: Tensor) -> Tensor:
    """The pixels under a kernel at each of its places, zeros outside: [B, C, H, W] -> [B, H / 2, W / 2, C * 9].

    As slices: graphs of them are the same in every format, and a graph of Im2Col is not.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1))
    cut = [
        padded[:, :, row : row + height : _STRIDE, column : column + width : _STRIDE]
        for row in range(_KERNEL)
        for column in range(_KERNEL)
    ]
    return torch.stack(cut, dim=2).flatten(1, 2).movedim(1, -1)
