"""One encoder layer: attention that sees the whole text, and an MLP. Knows one visit of one batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoders.config import EncoderConfig
from models.lm.attention import rotate
from models.lm.mlp import activation
from models.lm.rope import frequencies

# Farther than any text is long.
_EVERYWHERE = 1 << 40


class Rotary(nn.Module):
    """Positions that turn queries and keys, and how far one sees, of one layer.

    Both are buffers that are stored, so that layers differ in what they hold and not in what they compute.
    """

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        reach = config.reaches[layer]
        plain, _ = frequencies(config.ropes[layer], config.head_size)
        self.register_buffer("inv_freq", plain)  # [K / 2]
        # The device is named because a model is built on the meta device, where nothing has a value.
        self.register_buffer("reach", torch.tensor(_EVERYWHERE if reach is None else reach, device="cpu"))
        self.inv_freq: Tensor
        self.reach: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, D] -> cos, sin [1, S, K] in its dtype, and which tokens are near [1, 1, S, S] bool."""
        places = torch.arange(x.shape[1], device=x.device)
        angles = places[:, None].to(torch.float32) * self.inv_freq.to(torch.float32)
        angles = torch.cat((angles, angles), dim=-1)[None]
        near = (places[:, None] - places).abs() <= self.reach
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype), near[None, None]


class Attention(nn.Module):
    """Attention over the tokens of a text, near ones or all."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.has_attention_bias
        self.head_size = config.head_size
        self.rotary = Rotary(config, layer) if config.ropes else None
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, S, D] and lengths [B] -> [B, S, D]"""
        query, key, value = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        places = torch.arange(x.shape[1], device=x.device)
        # ONNX Runtime wants a row for every token, also where all see the same.
        mask = (places < lengths[:, None])[:, None, None, :].expand(-1, -1, x.shape[1], -1)  # [B, 1, S, S]
        if self.rotary is not None:
            cos, sin, near = self.rotary(x)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
            # Padding far from every token sees itself: a row that sees nothing would be no number.
            mask = (mask & near) | (places[:, None] == places)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, H, S, K]
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, H * K] -> [B, H, S, K]"""
        return x.view(x.shape[0], x.shape[1], -1, self.head_size).transpose(1, 2)


class MLP(nn.Module):
    """Up, activation, down; or with a gate (GeGLU, arXiv 2002.05202)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, size, bias = config.hidden_size, config.intermediate_size, config.has_mlp_bias
        self.act = activation(config.activation)
        self.gate_proj = nn.Linear(width, size, bias=bias) if config.is_gated else None
        self.up_proj = nn.Linear(width, size, bias=bias)
        self.down_proj = nn.Linear(size, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        up = self.up_proj(x)
        inner = self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up
        projected: Tensor = self.down_proj(inner)
        return projected


class Layer(nn.Module):
    """A standard residual layer, its norms on the sums (arXiv 1706.03762) or before the blocks (arXiv 2412.13663)."""

    def __init__(self, config: EncoderConfig, layer: int = 0) -> None:
        super().__init__()
        self.norms_before = config.norms_before
        self.attention = Attention(config, layer)
        is_first = config.norms_before and layer == 0  # the embedding's norm is right before it
        self.attention_norm = nn.Identity() if is_first else make_norm(config)
        self.mlp = MLP(config)
        self.mlp_norm = make_norm(config)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """One visit: hidden [B, S, D], lengths [B] int64, from which on tokens are padding -> hidden [B, S, D]."""
        if self.norms_before:
            attended: Tensor = hidden + self.attention(self.attention_norm(hidden), lengths)
            grown: Tensor = attended + self.mlp(self.mlp_norm(attended))
            return grown
        hidden = self.attention_norm(hidden + self.attention(hidden, lengths))
        normed: Tensor = self.mlp_norm(hidden + self.mlp(hidden))
        return normed


def make_norm(config: EncoderConfig) -> nn.Module:
    """A norm over the stream."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.has_norm_bias)
