"""Embedding and head with the rows of a vocabulary dealt out over the ranks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.lm.config import LMConfig
from models.lm.model import Embedding, Head
from models.parallel.group import Group
from models.parallel.split import Place
from models.parallel.stream import Stream


class ShardedEmbedding(Embedding):
    """Each rank looks up the words it has; the sum over the ranks is all of them.

    On a later stage of a pipeline no word is looked up: no row of the stream is there, and all that visits share.
    """

    def __init__(self, config: LMConfig, group: Group, is_here: bool = True) -> None:
        super().__init__(config)
        self.group, self.is_here = group, is_here
        self.start, self.stop = Place(group.rank, group.size).words(config.vocab_size)

    def forward(self, token_ids: Tensor, starts: Tensor, columns: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Shapes as in `Embedding.forward`, the stream [B, S, D] whatever the residual form."""
        if not self.is_here:
            weight = self.embed_tokens.weight
            nothing = weight.new_empty(0, token_ids.shape[1], weight.shape[1])
            return Stream(nothing), *self.shared(token_ids, starts, columns, weight.dtype)[1:]
        partial = self._looked_up(token_ids)
        handle = self.group.all_reduce(partial)
        positions, cos, sin, mask = self.shared(token_ids, starts, columns, partial.dtype)
        handle.wait()
        return Stream(self.placed(partial, positions)), cos, sin, mask

    def _looked_up(self, token_ids: Tensor) -> Tensor:
        """[B, S, D], zeros for the words of others"""
        if self.group.size == 1:
            found: Tensor = self.embed_tokens(token_ids)
            return found
        weight = self.embed_tokens.weight
        if self.start == self.stop:
            return weight.new_zeros(*token_ids.shape, weight.shape[1])
        is_other = (token_ids < self.start) | (token_ids >= self.stop)
        own = F.embedding((token_ids - self.start).masked_fill(is_other, 0), weight)
        return own.masked_fill(is_other[..., None], 0.0)


class ShardedHead(Head):
    """Final norm; each rank's logits are those of its words, and every rank gets them all."""

    def __init__(self, config: LMConfig, group: Group) -> None:
        super().__init__(config)
        self.group, self.vocab_size = group, config.vocab_size
        self.num_words = Place(group.rank, group.size).most_words(config.vocab_size)

    def forward(self, stream: Stream) -> Tensor:  # type: ignore[override]
        """[B, T, D] -> logits [B, T, V]"""
        logits: Tensor = self.lm_head(self.norm(stream.whole(self.group)))
        if self.softcap != 0.0:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        padded = F.pad(logits, (0, self.num_words - logits.shape[-1]))  # [B, T, V / P], the same on every rank
        return self.group.all_gather(padded, dim=2)[..., : self.vocab_size]
