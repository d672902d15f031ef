"""A model as its parts: embed, each layer, head and the whole, with fixed names, shapes and example inputs.

Knows no file format and no runtime.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from models.artifact import Datatype, TensorSpec
from models.errors import ArtifactError
from models.layered import LayeredModel, TensorStack
from models.lm.mlp import Experts
from models.lm.model import LanguageModel
from models.mixers.residual_mlp import ResidualMLP

Tensors: TypeAlias = tuple[Tensor, ...]
Run: TypeAlias = Callable[..., Tensors]

# Sizes of the example inputs: all different and none 0 or 1, so that no exporter takes two axes for one or fixes one.
BATCH, LENGTH, PAST = 2, 5, 3


@dataclass(frozen=True, slots=True)
class Port:
    """A named input or output of a part; each dimension is a size or the name of a dynamic axis."""

    name: str
    dims: tuple[int | str, ...]
    datatype: Datatype = "FP32"

    def spec(self) -> TensorSpec:
        """What the manifest says of it."""
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in self.dims)
        return TensorSpec(name=self.name, datatype=self.datatype, shape=shape)


@dataclass(frozen=True, slots=True)
class Part:
    """One graph to export: a module with what goes in and comes out, in order."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    examples: Tensors

    def __call__(self, *inputs: Tensor) -> Tensors:
        """Run the module in eager torch, recording nothing."""
        with torch.inference_mode():
            return as_tuple(self.module(*inputs))


@dataclass(frozen=True, slots=True)
class Parts:
    """All graphs of one model; `inputs` and `outputs` are what a server shows of it."""

    embed: Part
    layers: tuple[Part, ...]
    head: Part
    whole: Part
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def cached(self) -> bool:
        """Whether layers take and give keys and values, as a language model's do."""
        return len(self.whole.outputs) > 1

    def __iter__(self) -> Iterator[Part]:
        yield from (self.embed, *self.layers, self.head, self.whole)


@dataclass(frozen=True, slots=True)
class Runs:
    """The loaded files of one exported form as callables, torch tensors in and out; no `whole` where none is stored."""

    embed: Run
    layers: tuple[Run, ...]
    head: Run
    whole: Run | None


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


class WholeStack(nn.Module):
    """The full chain of a tensor model with one input, as one graph."""

    def __init__(self, model: TensorStack) -> None:
        super().__init__()
        self.embed, self.layers, self.head = model.embed, model.layers, model.head

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, ...] -> outputs [B, ...]"""
        hidden = self.embed(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        outputs: Tensor = self.head(hidden)
        return outputs


def split(model: LayeredModel) -> Parts:
    """The parts of `model`. Raises ArtifactError for a family whose inputs are not known here."""
    if isinstance(model, LanguageModel):
        return _split_language(model)
    if isinstance(model, ResidualMLP):
        return _split_stack(model, "features", model.config.num_features, "logits", model.config.num_classes)
    raise ArtifactError(f"{type(model).__name__} has no known inputs; exported are LanguageModel and ResidualMLP")


def visit_cost(layer: nn.Module) -> int:
    """Multiply-accumulates of one visit for one row (one token), counted from the weights a token meets."""
    linear = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    return linear + sum(module.num_active_weights for module in layer.modules() if isinstance(module, Experts))


def as_tuple(outputs: Any) -> Tensors:
    """What a module returned, always as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _split_language(model: LanguageModel) -> Parts:
    config = model.config
    width, size, vocabulary = config.hidden_size, config.head_size, config.vocab_size
    heads, num_layers = config.num_key_value_heads, config.num_hidden_layers
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


def _split_stack(model: TensorStack, input_name: str, num_inputs: int, output_name: str, num_outputs: int) -> Parts:
    inputs, outputs = Port(input_name, ("batch", num_inputs)), Port(output_name, ("batch", num_outputs))
    example = torch.randn(BATCH, num_inputs, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stream = model.embed(example)
    hidden = Port("hidden", ("batch", *stream.shape[1:]))
    hidden_out = Port("hidden_out", hidden.dims)
    return Parts(
        Part("embed", model.embed, (inputs,), (hidden,), (example,)),
        tuple(
            Part(f"layer_{i:03}", layer, (hidden,), (hidden_out,), (stream,)) for i, layer in enumerate(model.layers)
        ),
        Part("head", model.head, (hidden,), (outputs,), (stream,)),
        Part("whole", WholeStack(model).eval(), (inputs,), (outputs,), (example,)),
        inputs=(inputs.spec(),),
        outputs=(outputs.spec(),),
    )
