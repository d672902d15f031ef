"""A text encoder as embed, layers, head. No text and no tokenizer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.chain import Chain
from models.encoders.block import Layer, make_norm
from models.encoders.config import EncoderConfig
from models.encoders.head import PooledHead, TokenHead
from models.layered import Kind, LayeredModel


class Embedding(nn.Module):
    """Tokens, their positions where these are learned, and which text of a pair they belong to."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.pad_token_id = config.pad_token_id
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.num_positions, width) if config.num_positions else None
        self.token_type = nn.Embedding(config.num_token_types, width) if config.num_token_types else None
        self.norm = make_norm(config)

    def forward(self, token_ids: Tensor, token_types: Tensor | None = None) -> Tensor:
        """token_ids [B, S] int64, padded on the right; token_types [B, S] int64, zeros if None -> hidden [B, S, D]."""
        hidden = self.word(token_ids)
        if self.token_type is not None:
            hidden = hidden + self.token_type(torch.zeros_like(token_ids) if token_types is None else token_types)
        if self.position is not None:  # padding may lie behind the last position there is
            last = self.position.num_embeddings - 1
            hidden = hidden + self.position(self._positions(token_ids).clamp(max=last))
        normed: Tensor = self.norm(hidden)
        return normed

    def _positions(self, token_ids: Tensor) -> Tensor:
        if self.pad_token_id is None:
            return torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        counted = token_ids.ne(self.pad_token_id).to(torch.int64)  # RoBERTa: a pad token within a text has no place
        return counted.cumsum(1) * counted + self.pad_token_id


class EncoderModel(LayeredModel):
    """An encoder whose layers can be visited in any order."""

    kind: Kind = "encoder"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: Embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.head: PooledHead | TokenHead = PooledHead(config) if config.head.pooling else TokenHead(config)

    def tie(self) -> None:
        """Let the head use the embedding's weights."""
        project = self.head.project
        assert not isinstance(project, nn.Identity)
        project.out.weight = self.embed.word.weight

    def states(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        """Last hidden states [B, S, D], as `transformers` calls them: normed where the model does so at its end."""
        normed: Tensor = self.head.norm(self._stream(inputs, chain))
        return normed

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        """Outputs of a plain loop along `chain`: [B, E] or [B, C] of a text, [B, S, C] or [B, S, V] of its tokens.

        inputs: token_ids [B, S], lengths [B] and, of models that tell pairs apart, token_types [B, S].
        """
        hidden = self._stream(inputs, chain)
        more = (inputs["lengths"],) if isinstance(self.head, PooledHead) else ()
        outputs: Tensor = self.head(hidden, *more)
        return outputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs of the full chain, of the inputs of `along` in that order."""
        named = dict(zip(("token_ids", "lengths", "token_types"), inputs, strict=False))
        return self.along(named, Chain.full(len(self.layers)))

    def _stream(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        hidden: Tensor = self.embed(inputs["token_ids"], inputs.get("token_types"))
        for layer in chain.layers:
            hidden = self.layers[layer](hidden, inputs["lengths"])
        return hidden
