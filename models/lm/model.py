"""A decoder-only language model as embed, layers, head. No tokens as text, no sampling, no cache of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.chain import Chain
from models.layered import Kind, LayeredModel
from models.lm.block import Layer
from models.lm.config import LMConfig


class Embedding(nn.Module):
    """Token embedding, plus what every visit of the pass shares: rotary angles and the attention mask."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        exponent = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
        self.register_buffer("inv_freq", 1.0 / config.rope_theta**exponent, persistent=False)  # [K / 2]
        self.inv_freq: Tensor

    def forward(self, token_ids: Tensor, starts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Start a pass.

        token_ids [B, S] int64, padded on the right; starts [B] int64, tokens of each row already cached;
        columns [P] int64, the cache columns 0 to P - 1, of which a row sees the first `starts`.
        Returns hidden [B, S, D]; cos, sin [B, S, K] float32; mask [B, 1, S, P + S] bool.
        """
        new = torch.arange(token_ids.shape[1], device=token_ids.device)  # [S]
        positions = starts[:, None] + new  # [B, S]
        angles = positions[:, :, None].to(torch.float32) * self.inv_freq  # [B, S, K / 2]
        angles = torch.cat((angles, angles), dim=-1)  # [B, S, K]
        cached = (columns < starts[:, None])[:, None, :].expand(-1, token_ids.shape[1], -1)  # [B, S, P]
        causal = (new[None, :] <= new[:, None]).expand(token_ids.shape[0], -1, -1)  # [B, S, S]
        mask = torch.cat((cached, causal), dim=2).unsqueeze(1)
        return self.embed_tokens(token_ids), angles.cos(), angles.sin(), mask


class Head(nn.Module):
    """Final norm and projection to the vocabulary."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, V]"""
        logits: Tensor = self.lm_head(self.norm(hidden))
        return logits


class LanguageModel(LayeredModel):
    """A Llama-family decoder whose layers can be visited in any order."""

    kind: Kind = "causal-lm"

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: Embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.head = Head(config)

    def empty_cache(self, batch: int) -> Tensor:
        """Keys or values of no token: [B, G, 0, K] float32."""
        return self.embed.inv_freq.new_zeros(batch, self.config.num_key_value_heads, 0, self.config.head_size)

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        token_ids = inputs["token_ids"]  # [B, S]
        starts = torch.zeros_like(token_ids[:, 0])
        hidden, cos, sin, mask = self.embed(token_ids, starts, starts[:0])
        nothing = self.empty_cache(token_ids.shape[0])
        for layer in chain.layers:
            hidden, _, _ = self.layers[layer](hidden, cos, sin, mask, nothing, nothing)
        logits: Tensor = self.head(hidden)
        return logits

    def forward(self, *inputs: Tensor) -> Tensor:
        """token_ids [B, S] int64 -> logits [B, S, V]"""
        return self.along({"token_ids": inputs[0]}, Chain.full(len(self.layers)))
