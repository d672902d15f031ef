"""Vision transformers (arXiv 2010.11929): patches as tokens, pre-norm layers of one shape, a head on a class token."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layered import TensorStack
from models.lm.mlp import activation


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Sizes of a vision transformer.

    image_size: height and width. has_distillation: a second token beside the class token (DeiT, arXiv 2012.12877);
    has_distilled_head: a classifier of its own on that token. has_scales: a learned factor for what each half of a
    layer adds (DeiT III, arXiv 2204.07118). has_positions_of_tokens: whether class and distillation token have some.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int
    num_classes: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    activation: str = "gelu"
    has_qkv_bias: bool = True
    has_distillation: bool = False
    has_distilled_head: bool = False
    has_scales: bool = False
    has_positions_of_tokens: bool = True

    @property
    def num_patches(self) -> int:
        return (self.image_size[0] // self.patch_size[0]) * (self.image_size[1] // self.patch_size[1])

    @property
    def num_tokens(self) -> int:
        """Tokens before the patches."""
        return 1 + self.has_distillation


class Patches(nn.Module):
    """Pixels to tokens: class token, distillation token if there is one, then the patches row by row."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, self.has_positions_of_tokens = config.hidden_size, config.has_positions_of_tokens
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if config.has_distillation else None
        num_positions = config.num_patches + (config.num_tokens if config.has_positions_of_tokens else 0)
        self.positions = nn.Parameter(torch.zeros(1, num_positions, width))
        self.patches = nn.Conv2d(config.num_channels, width, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, height, width], normalised -> [B, S, D]"""
        patches = self.patches(pixels.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        if not self.has_positions_of_tokens:
            patches = patches + self.positions
        tokens = [self.class_token.expand(patches.shape[0], -1, -1)]
        if self.distillation_token is not None:
            tokens.append(self.distillation_token.expand(patches.shape[0], -1, -1))
        hidden = torch.cat((*tokens, patches), dim=1)
        return hidden + self.positions if self.has_positions_of_tokens else hidden


class Attention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.query = nn.Linear(width, width, bias=config.has_qkv_bias)
        self.key = nn.Linear(width, width, bias=config.has_qkv_bias)
        self.value = nn.Linear(width, width, bias=config.has_qkv_bias)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, H, S, K]
        projected: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, K]"""
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)


class MLP(nn.Module):
    """Up, activation, down."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.act = activation(config.activation)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        projected: Tensor = self.down(self.act(self.up(x)))
        return projected


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the stream."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.attention_scale = nn.Parameter(torch.ones(width)) if config.has_scales else None
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.mlp_scale = nn.Parameter(torch.ones(width)) if config.has_scales else None

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        attended = self.attention(self.attention_norm(hidden))
        hidden = hidden + (attended if self.attention_scale is None else attended * self.attention_scale)
        changed = self.mlp(self.mlp_norm(hidden))
        updated: Tensor = hidden + (changed if self.mlp_scale is None else changed * self.mlp_scale)
        return updated


class Head(nn.Module):
    """Final norm and classifier of the class token; of two tokens with a classifier each, their mean."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_classes)
        self.distilled = nn.Linear(config.hidden_size, config.num_classes) if config.has_distilled_head else None

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] -> logits [B, C]"""
        normed = self.norm(hidden)
        logits: Tensor = self.classifier(normed[:, 0])
        return logits if self.distilled is None else (logits + self.distilled(normed[:, 1])) / 2


class VisionTransformer(TensorStack):
    """An image classifier whose layers can be visited in any order."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.image_shape = (config.num_channels, *config.image_size)
        self.num_classes = config.num_classes
        self.embed = Patches(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.head = Head(config)
