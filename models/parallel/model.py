"""One rank's part of a decoder-only language model, as embed, layers, head. No cache and no sampling."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.chain import Chain
from models.lm.config import LMConfig
from models.lm.residual import Residual
from models.parallel.group import Group
from models.parallel.layer import make_layer
from models.parallel.split import Place, local_config
from models.parallel.stages import Part
from models.parallel.vocabulary import ShardedEmbedding, ShardedHead


class ShardedModel(nn.Module):
    """A slice of every weight; parameters have the names of `LanguageModel`, and the shapes that the slices have.

    On a stage of a pipeline it is of the stage's part of the model: what stands for other layers has no weights.
    """

    def __init__(self, config: LMConfig, group: Group, part: Part | None = None) -> None:
        """config: of the whole model. Raises BackendError if it cannot be dealt out to so many ranks."""
        super().__init__()
        self.config, self.group = config, group
        self.part = part or Part(range(config.num_hidden_layers))
        self.local = local_config(config, Place(group.rank, group.size))
        ends = replace(config, residual=Residual())  # what is on its way travels in the stream, not beside it
        self.embed: ShardedEmbedding = ShardedEmbedding(ends, group, self.part.has_embedding)
        self.layers = nn.ModuleList(
            make_layer(config, self.local, layer, group) if layer in self.part.layers else nn.Identity()
            for layer in range(config.num_hidden_layers)
        )
        self.head: ShardedHead = ShardedHead(ends, group)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights, stream, keys and values."""
        return self.embed.embed_tokens.weight.dtype

    def empty_cache(self, batch: int) -> Tensor:
        """This rank's keys or values of no token: [B, G, 0, K]."""
        shape = (batch, self.local.num_key_value_heads, 0, self.local.head_size)
        return self.embed.embed_tokens.weight.new_zeros(shape)

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        """Logits [B, S, V] of a plain loop along `chain` on every rank; nothing cached."""
        token_ids = inputs["token_ids"]  # [B, S]
        starts = token_ids.new_zeros(len(token_ids))
        stream, cos, sin, mask = self.embed(token_ids, starts, starts[:0])
        nothing = self.empty_cache(len(token_ids))
        for layer in chain.layers:
            stream, _, _ = self.layers[layer](stream, cos, sin, mask, nothing, nothing)
        logits: Tensor = self.head(stream)
        return logits
