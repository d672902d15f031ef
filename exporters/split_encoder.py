"""The parts of a text encoder: every part but embed learns from the lengths which tokens are padding."""

import torch
from torch import Tensor, nn

from exporters.parts import BATCH, LENGTH, Part, Parts, Port
from models.encoders.head import PooledHead
from models.encoders.model import EncoderModel


class WholeEncoder(nn.Module):
    """The full chain of an encoder as one graph."""

    def __init__(self, model: EncoderModel) -> None:
        super().__init__()
        self.embed, self.layers, self.head = model.embed, model.layers, model.head
        self.is_pooled = isinstance(model.head, PooledHead)

    def forward(self, token_ids: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        """token_ids [B, S], lengths [B], token_types [B, S] int64 -> outputs [B, ...] or [B, S, ...]"""
        hidden = self.embed(token_ids, token_types)
        for layer in self.layers:
            hidden = layer(hidden, lengths)
        outputs: Tensor = self.head(hidden, lengths) if self.is_pooled else self.head(hidden)
        return outputs


def split_encoder(model: EncoderModel) -> Parts:
    """The parts of `model`; `lengths` [B] is beside the stream wherever padding must be told."""
    config, is_pooled = model.config, isinstance(model.head, PooledHead)
    token_ids, lengths = Port("token_ids", ("batch", "length"), "INT64"), Port("lengths", ("batch",), "INT64")
    types = (Port("token_types", ("batch", "length"), "INT64"),) if config.has_token_types else ()
    hidden = Port("hidden", ("batch", "length", config.hidden_size))

    ids = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % config.vocab_size
    told = tuple((torch.arange(LENGTH) % 2).expand(BATCH, -1).contiguous() for _ in types)
    counts = torch.arange(LENGTH, LENGTH - BATCH, -1)
    with torch.no_grad():
        stream = model.embed(ids, *told)
        outputs = model(ids, counts, *told)
    dims = ("batch", *outputs.shape[1:]) if is_pooled else ("batch", "length", outputs.shape[-1])
    output = Port("embedding" if config.head.task == "embed" else "logits", dims)
    beside, count = ((lengths,), (counts,)) if is_pooled else ((), ())
    layers = tuple(
        Part(f"layer_{i:03}", layer, (hidden, lengths), (Port("hidden_out", hidden.dims),), (stream, counts))
        for i, layer in enumerate(model.layers)
    )
    whole_inputs = (token_ids, lengths, *types)
    return Parts(
        Part("embed", model.embed, (token_ids, *types), (hidden,), (ids, *told)),
        layers,
        Part("head", model.head, (hidden, *beside), (output,), (stream, *count)),
        Part("whole", WholeEncoder(model).eval(), whole_inputs, (output,), (ids, counts, *told)),
        inputs=tuple(port.spec() for port in whole_inputs),
        outputs=(output.spec(),),
        # Tokens that do not see each other, so that a layer with another reach is told from its neighbours.
        reach=config.longest_reach,
        text_sizes=(config.vocab_size, config.max_length),
    )
