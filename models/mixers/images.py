"""What mixers of images share: a square image cut into patches, a stream of tokens, and a head that pools them.

The stream is [B, H, W, D]: a grid of H x W tokens, one of each patch. Knows no block.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from models.artifact import TensorSpec
from models.errors import ArtifactError
from models.layered import TensorStack


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """Sizes of a mixer of square images; `input_shift` and `input_scale` bring pixels to zero mean, unit range, about.

    Raises ArtifactError where patches do not fill the image.
    """

    image_size: int = 8
    patch_size: int = 2
    num_channels: int = 1
    num_classes: int = 10
    hidden_size: int = 32
    num_layers: int = 3
    input_shift: float = 8.0
    input_scale: float = 0.125

    def __post_init__(self) -> None:
        fitting = [size for size in range(1, self.image_size + 1) if self.image_size % size == 0]
        if self.patch_size not in fitting:
            raise ArtifactError(
                f"patches of {self.patch_size} pixels a side do not fill images of {self.image_size}; "
                f"choose a patch_size among {fitting}"
            )

    @property
    def grid_size(self) -> int:
        """Tokens on a side of the grid."""
        return self.image_size // self.patch_size


class PatchEmbedding(nn.Module):
    """Each patch to one token: a linear map of its pixels."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.shift, self.scale = config.input_shift, config.input_scale
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, image_size, image_size] -> [B, H, W, D]"""
        tokens: Tensor = self.patches((images - self.shift) * self.scale)
        return tokens.permute(0, 2, 3, 1)


class PooledClassifier(nn.Module):
    """Final norm, mean of the tokens, and projection to the classes."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H, W, D] -> logits [B, C]"""
        logits: Tensor = self.linear(self.norm(hidden).mean((1, 2)))
        return logits


class ImageStack(TensorStack):
    """A classifier of square images: patches, blocks over their grid, and a pooled head."""

    def __init__(self, config: ImageConfig, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embed = PatchEmbedding(config)
        self.layers = nn.ModuleList(blocks)
        self.head = PooledClassifier(config)
        side = config.image_size
        self.inputs = (TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, config.num_channels, side, side)),)
        self.outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, config.num_classes)),)
