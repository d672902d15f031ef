"""A decoder-only language model as embed, layers, head. No tokens as text, no sampling, no cache of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.chain import Chain
from models.layered import Kind, LayeredModel
from models.lm.block import make_layer
from models.lm.config import LMConfig
from models.lm.norm import make_norm
from models.lm.rope import frequencies
from models.lm.streams import make_begun, make_landed


class Embedding(nn.Module):
    """Token embedding, plus what every visit of the pass shares: rotary angles and the attention masks."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.scale, self.windows = config.embedding_scale, config.windows
        self.begun = make_begun(config.residual)
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        self.embed_positions: nn.Embedding | None = None
        if config.rope is None:
            self.embed_positions = _embedding(config.max_position_embeddings, config.hidden_size)
        plain, self.temperature = (
            frequencies(config.rope, config.head_size) if config.rope else (torch.empty(0, device="cpu"), 1.0)
        )
        self.register_buffer("inv_freq", plain, persistent=False)  # [R / 2]
        self.inv_freq: Tensor

    def forward(self, token_ids: Tensor, starts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Start a pass.

        token_ids [B, S] int64, padded on the right; starts [B] int64, tokens of each row already cached;
        columns [P] int64, the cache columns 0 to P - 1, of which a row sees the first `starts`.
        Returns hidden [B, S, D], wider where the residual form asks for it (`Residual.width`); cos, sin [B, S, R] in
        its dtype; mask [B, M, S, P + S] bool, M for each reach.
        """
        words = self.embed_tokens(token_ids)
        positions, cos, sin, mask = self.shared(token_ids, starts, columns, words.dtype)
        return self.begun(self.placed(words, positions)), cos, sin, mask

    def shared(
        self, token_ids: Tensor, starts: Tensor, columns: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions [B, S] of the new tokens, and cos, sin and mask as `forward` returns them; looks no word up."""
        new = torch.arange(token_ids.shape[1], device=token_ids.device)  # [S]
        positions = starts[:, None] + new  # [B, S]
        angles = positions[:, :, None].to(torch.float32) * self.inv_freq  # [B, S, R / 2]
        angles = torch.cat((angles, angles), dim=-1)  # [B, S, R]
        cos, sin = (wave * self.temperature for wave in (angles.cos(), angles.sin()))
        cached = (columns < starts[:, None])[:, None, :].expand(-1, token_ids.shape[1], -1)  # [B, S, P]
        causal = (new[None, :] <= new[:, None]).expand(token_ids.shape[0], -1, -1)  # [B, S, S]
        mask = torch.cat((cached, causal), dim=2)
        # How far back each column lies, of cached and of new tokens.
        back = torch.cat(
            (positions[:, :, None] - columns, (new[:, None] - new).expand(token_ids.shape[0], -1, -1)), dim=2
        )
        masks = [mask if window is None else mask & (back < window) for window in self.windows]
        return positions, cos.to(dtype), sin.to(dtype), torch.stack(masks, dim=1)

    def placed(self, words: Tensor, positions: Tensor) -> Tensor:
        """Vectors of words [B, S, D] at their positions [B, S]."""
        hidden = words
        if self.scale != 1.0:
            hidden = hidden * torch.tensor(self.scale, dtype=hidden.dtype, device=hidden.device)
        if self.embed_positions is not None:  # padding may lie behind the last position there is
            hidden = hidden + self.embed_positions(positions.clamp(max=self.embed_positions.num_embeddings - 1))
        return hidden


class Head(nn.Module):
    """Final norm and projection to the vocabulary."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.softcap = config.logit_softcap or 0.0
        self.landed = make_landed(config.residual)
        self.norm = make_norm(config, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D], wider where the residual form asks for it -> logits [B, T, V]; all that is pending lands here"""
        logits: Tensor = self.lm_head(self.norm(self.landed(hidden)))
        return logits if self.softcap == 0.0 else torch.tanh(logits / self.softcap) * self.softcap


class LanguageModel(LayeredModel):
    """A decoder whose layers can be visited in any order."""

    kind: Kind = "causal-lm"

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.residual_form = "parallel" if config.is_parallel else config.residual.text
        self.embed: Embedding = Embedding(config)
        self.layers = nn.ModuleList(make_layer(config, i) for i in range(config.num_hidden_layers))
        self.head: Head = Head(config)
        if config.is_tied:
            self.tie()

    def tie(self) -> None:
        """Let the head use the embedding's weights."""
        self.head.lm_head.weight = self.embed.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights, stream, keys and values."""
        return self.embed.embed_tokens.weight.dtype

    def empty_cache(self, batch: int) -> Tensor:
        """Keys or values of no token: [B, G, 0, K]."""
        shape = (batch, self.config.num_key_value_heads, 0, self.config.head_size)
        return self.embed.embed_tokens.weight.new_zeros(shape)

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


def _embedding(count: int, width: int) -> nn.Embedding:
    """As nn.Embedding makes it, which on the meta device would spend seconds importing what compiles Python."""
    return nn.Embedding(count, width, _weight=torch.normal(0.0, 1.0, size=(count, width)))
