"""Causal grouped-query attention of one visit; keys and values come in and go out, nobody keeps them here."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lm.config import LMConfig
from models.lm.linear import make_linear
from models.lm.norm import make_norm


class Attention(nn.Module):
    """Attention over cached and new tokens, with rotary positions where the model has them (arXiv 2104.09864)."""

    def __init__(self, config: LMConfig, layer: int) -> None:
        super().__init__()
        self.head_size, self.rotary_size = config.head_size, config.rotary_size
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        self.mask = config.mask_of(layer)
        self.scale = (config.attention_scale or config.head_size**-0.5) / (
            layer + 1 if config.is_scaled_by_depth else 1
        )
        self.softcap = config.attention_softcap or 0.0
        self.bound = config.qkv_bound or math.inf
        self.norms_each_head = config.qk_norm == "head"
        width, size = config.hidden_size, config.num_attention_heads * config.head_size
        kv_size = config.num_key_value_heads * config.head_size
        self.q_proj = make_linear(config, width, size, config.qkv_bias)
        self.k_proj = make_linear(config, width, kv_size, config.qkv_bias)
        self.v_proj = make_linear(config, width, kv_size, config.qkv_bias)
        self.o_proj = make_linear(config, size, width, config.output_bias)
        self.q_norm = self._norm(config, size)
        self.k_norm = self._norm(config, kv_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`."""
        query, new_key = self.project(x)  # [B, H, S, K], [B, G, S, K]
        query, new_key = self._rotate(query, cos, sin), self._rotate(new_key, cos, sin)
        new_value = self._split(self._bounded(self.v_proj(x)))  # [B, G, S, K]
        key = torch.cat((past_key, new_key), dim=2)  # [B, G, P + S, K]
        value = torch.cat((past_value, new_value), dim=2)
        if self.num_groups > 1:
            key = key.repeat_interleave(self.num_groups, dim=1)  # [B, H, P + S, K]
            value = value.repeat_interleave(self.num_groups, dim=1)
        mixed = self._attend(query, key, value, mask[:, self.mask : self.mask + 1])  # [B, H, S, K]
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), new_key, new_value

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, H, S, K] and keys [B, G, S, K] of x [B, S, D], normed and not yet turned."""
        return self._normed(self.q_proj(x), self.q_norm), self._normed(self.k_proj(x), self.k_norm)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        if self.softcap == 0.0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        scores = query @ key.transpose(2, 3) * self.scale  # [B, H, S, P + S]
        bounded = torch.tanh(scores / self.softcap) * self.softcap  # Gemma 2, arXiv 2408.00118, section 2
        weights = torch.softmax(bounded.masked_fill(~mask, -math.inf), dim=-1, dtype=torch.float32)
        return weights.to(value.dtype) @ value

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Heads [B, heads, S, K], normed each by itself or all together."""
        heads: Tensor = norm(self._split(x)) if self.norms_each_head else self._split(self._bounded(norm(x)))
        return heads

    def _bounded(self, x: Tensor) -> Tensor:
        return x if self.bound == math.inf else x.clamp(-self.bound, self.bound)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.rotary_size == 0:
            return x
        if self.rotary_size == self.head_size:
            return rotate(x, cos, sin)
        turned = rotate(x[..., : self.rotary_size], cos, sin)
        return torch.cat((turned, x[..., self.rotary_size :]), dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, heads * K] -> [B, heads, S, K]"""
        return x.view(x.shape[0], x.shape[1], -1, self.head_size).transpose(1, 2)

    @staticmethod
    def _norm(config: LMConfig, size: int) -> nn.Module:
        if config.qk_norm is None:
            return nn.Identity()
        return make_norm(config, config.head_size if config.qk_norm == "head" else size)


class NoAttention(nn.Module):
    """What is left of a layer's attention when it was dropped: it adds nothing; nobody reads its keys and values."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_key_value_heads, config.head_size

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`."""
        nothing = x.new_zeros(x.shape[0], self.num_heads, x.shape[1], self.head_size)
        return torch.zeros_like(x), nothing, torch.zeros_like(nothing)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each half-split pair of x [B, heads, S, R] by its position's angle; cos, sin [B, S, R]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
