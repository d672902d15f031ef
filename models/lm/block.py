"""One pre-norm decoder layer: RMSNorm, rotary grouped-query attention, SwiGLU.

Knows one visit of one batch; keys and values come in and go out, nobody keeps them here. Parameter names are Llama's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lm.config import LMConfig


class Attention(nn.Module):
    """Causal grouped-query attention over cached and new tokens, with rotary positions (RoFormer, arXiv 2104.09864)."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`."""
        query = rotate(self._split(self.q_proj(x)), cos, sin)  # [B, H, S, K]
        new_key = rotate(self._split(self.k_proj(x)), cos, sin)  # [B, G, S, K]
        new_value = self._split(self.v_proj(x))  # [B, G, S, K]
        key = torch.cat((past_key, new_key), dim=2)  # [B, G, P + S, K]
        value = torch.cat((past_value, new_value), dim=2)
        if self.num_groups > 1:
            key = key.repeat_interleave(self.num_groups, dim=1)  # [B, H, P + S, K]
            value = value.repeat_interleave(self.num_groups, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, H, S, K]
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), new_key, new_value

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.head_size).transpose(
            1, 2
        )  # [B, S, heads * K] -> [B, heads, S, K]


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202, section 2)."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class Layer(nn.Module):
    """A standard residual layer: attention, then MLP, each added to the stream it read."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One visit.

        hidden [B, S, D]; cos, sin [B, S, K]; mask [B, 1, S, P + S] bool, true where a token may look;
        past_key, past_value [B, G, P, K]. Returns hidden [B, S, D] and the new tokens' keys and values [B, G, S, K].
        """
        mixed, key, value = self.self_attn(self.input_layernorm(hidden), cos, sin, mask, past_key, past_value)
        hidden = hidden + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), key, value


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each half-split pair of x [B, heads, S, K] by its position's angle; cos, sin [B, S, K]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
