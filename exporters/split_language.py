"""The parts of a decoder-only language model: keys and values are inputs and outputs of every layer."""

import torch
from torch import Tensor, nn

from exporters.parts import BATCH, LENGTH, PAST, Part, Parts, Port
from models.lm.model import LanguageModel


class WholeLanguageModel(nn.Module):
    """The full chain of a language model over new tokens and everything cached, as one graph."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.embed, self.layers, self.head = model.embed, model.layers, model.head

    def forward(
        self, token_ids: Tensor, starts: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one pass.

        token_ids [B, S], starts [B] int64; past_keys, past_values [L, B, G, P, K] float32, of which a row sees the
        first `starts` columns. Returns logits [B, S, V], keys and values of the new tokens [L, B, G, S, K].
        """
        columns = torch.arange(past_keys.shape[3], device=token_ids.device)
        hidden, cos, sin, mask = self.embed(token_ids, starts, columns)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            hidden, key, value = layer(hidden, cos, sin, mask, past_keys[i], past_values[i])
            keys.append(key)
            values.append(value)
        return self.head(hidden), torch.stack(keys), torch.stack(values)


def split_language(model: LanguageModel) -> Parts:
    """The parts of `model`; keys and values of the whole graph are stacked over the layers."""
    config = model.config
    width, size, vocabulary = config.residual.width(config.hidden_size), config.head_size, config.vocab_size
    heads, num_layers = config.num_key_value_heads, len(model.layers)
    token_ids, starts = Port("token_ids", ("batch", "length"), "INT64"), Port("starts", ("batch",), "INT64")
    hidden = Port("hidden", ("batch", "length", width))
    # Not "cos" and "sin": the exporter gives these names to the operators.
    shared = (
        Port("cosine", ("batch", "length", config.rotary_size)),
        Port("sine", ("batch", "length", config.rotary_size)),
        Port("mask", ("batch", len(config.windows), "length", "total"), "BOOL"),
    )
    past = tuple(Port(f"past_{name}", ("batch", heads, "past", size)) for name in ("key", "value"))
    new = tuple(Port(name, ("batch", heads, "length", size)) for name in ("key", "value"))
    all_past = tuple(Port(f"{port.name}s", (num_layers, *port.dims)) for port in past)
    all_new = tuple(Port(f"{port.name}s", (num_layers, *port.dims)) for port in new)
    logits = Port("logits", ("batch", "length", vocabulary))

    first = (torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % vocabulary, torch.tensor([1, PAST]), torch.arange(PAST))
    # Keys and values must differ: an exporter takes one tensor passed twice for one input.
    random = torch.Generator().manual_seed(0)
    cached = tuple(torch.randn(num_layers, BATCH, heads, PAST, size, generator=random) for _ in past)
    embed = Part(
        "embed", model.embed, (token_ids, starts, Port("columns", ("past",), "INT64")), (hidden, *shared), first
    )
    with torch.no_grad():
        carried = model.embed(*first)
    # Of random masks no two are alike, so that a layer that looks through another one is told from its neighbours.
    seen = torch.rand(carried[-1].shape, generator=random) < 0.5
    seen[..., -1] = True
    carried = (*carried[:-1], seen)
    layer_inputs, layer_outputs = (hidden, *shared, *past), (Port("hidden_out", hidden.dims), *new)
    layers = tuple(
        Part(f"layer_{i:03}", layer, layer_inputs, layer_outputs, (*carried, *(tensor[i] for tensor in cached)))
        for i, layer in enumerate(model.layers)
    )
    whole_inputs, whole_outputs = (token_ids, starts, *all_past), (logits, *all_new)
    whole = Part("whole", WholeLanguageModel(model).eval(), whole_inputs, whole_outputs, (*first[:2], *cached))
    return Parts(
        embed,
        layers,
        Part("head", model.head, (hidden,), (logits,), (carried[0],)),
        whole,
        inputs=(token_ids.spec(),),
        outputs=(logits.spec(),),
    )
