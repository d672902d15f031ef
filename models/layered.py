"""The contract of a depth-adaptable network: embed, same-shape residual layers, head.

Also the plain loop along a chain, without any cache: the reference every backend is held against.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from models.artifact import TensorSpec
from models.chain import Chain

Kind: TypeAlias = Literal["causal-lm", "encoder", "tensor", "sequence"]
Carry: TypeAlias = tuple[Tensor, ...]


class LayeredModel(nn.Module):
    """A network as embed -> layers -> head. What a layer returns first, the next visit takes first.

    A `tensor` model has `embed(*inputs) -> hidden`, `layer(hidden) -> hidden`, `head(hidden) -> outputs`.
    An `encoder` has `embed(token_ids[, token_types]) -> hidden`, `layer(hidden, lengths) -> hidden`, and
    `head(hidden, lengths)` of the whole text or `head(hidden)` of each token.
    A `sequence` model has `embed(steps) -> hidden`, `layer(hidden, *state) -> hidden, *state` and `head(hidden)`.
    A `causal-lm` model has the signatures of `models.lm.model`, with keys and values as explicit inputs and outputs.
    """

    kind: Kind
    residual_form: str = "standard"
    embed: nn.Module
    layers: nn.ModuleList
    head: nn.Module

    @property
    def unservable(self) -> str:
        """Why this form is for training alone, as a sentence that says what to do; empty where it can be served."""
        return ""

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        """Outputs of a plain loop along `chain`, nothing cached: [B, C], or [B, S, V] logits of a language model."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs of the full chain."""
        raise NotImplementedError


class TensorStack(LayeredModel):
    """A layered model of tensors: no positions, no cache."""

    kind: Kind = "tensor"

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        hidden = self.embed(*inputs.values())  # [B, D]
        for layer in chain.layers:
            hidden = self.layers[layer](hidden)
        outputs: Tensor = self.head(hidden)
        return outputs

    def forward(self, *inputs: Tensor) -> Tensor:
        hidden = self.embed(*inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        outputs: Tensor = self.head(hidden)
        return outputs


class SequenceStack(LayeredModel):
    """A layered model that reads a sequence step by step, with a state of fixed size for every visit.

    `embed(steps [B, T, ...]) -> hidden [B, T, D]`, `layer(hidden, *state) -> (hidden, *state)` for any T up to
    `max_chunk`, `head(hidden) -> outputs [B, T, C]`. Every row of a pass has as many steps. Zeros are the state before
    the first step; a visit that is left out leaves no state. Steps are numbers, or token ids below `vocab_size`.
    """

    kind: Kind = "sequence"
    max_chunk: int
    max_trained: int
    vocab_size: int = 0

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        """What one visit hands from one pass to the next; -1 is the batch."""
        raise NotImplementedError

    def empty_state(self, batch: int) -> tuple[Tensor, ...]:
        """The state of one visit before the first step: zeros [B, ...], in the precision of the weights."""
        like = next(self.parameters())
        return tuple(
            like.new_zeros(batch, *spec.shape[1:], dtype=torch.int64 if spec.datatype == "INT64" else None)
            for spec in self.state
        )

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        """Outputs of every step [B, T, C], walked in passes of at most `max_chunk` steps."""
        (steps,) = inputs.values()
        states = [self.empty_state(len(steps)) for _ in chain.layers]
        outputs = []
        for chunk in torch.split(steps, self.max_chunk, dim=1):
            hidden = self.embed(chunk)
            for visit, layer in enumerate(chain.layers):
                hidden, *state = self.layers[layer](hidden, *states[visit])
                states[visit] = tuple(state)
            outputs.append(self.head(hidden))
        return torch.cat(outputs, dim=1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Steps [B, T, ...] to outputs [B, T, C]"""
        return self.along({"steps": inputs[0]}, Chain.full(len(self.layers)))


class Whole(LayeredModel):
    """A network that is no stack of layers: served whole, with no chain. `forward` is all there is of it."""

    kind: Kind = "tensor"

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Identity(), nn.ModuleList(), nn.Identity()

    def along(self, inputs: Mapping[str, Tensor], chain: Chain) -> Tensor:
        assert not chain.layers, "a network that is no stack has no chain"
        outputs: Tensor = self(*inputs.values())
        return outputs


def num_parameters(module: nn.Module) -> int:
    """Scalars in the parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
