"""The contract of a depth-adaptable network: embed, same-shape residual layers, head.

Also the plain loop along a chain, without any cache: the reference every backend is held against.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from torch import Tensor, nn

from models.chain import Chain

Kind: TypeAlias = Literal["causal-lm", "encoder", "tensor"]
Carry: TypeAlias = tuple[Tensor, ...]


class LayeredModel(nn.Module):
    """A network as embed -> layers -> head. What a layer returns first, the next visit takes first.

    A `tensor` model has `embed(*inputs) -> hidden`, `layer(hidden) -> hidden`, `head(hidden) -> outputs`.
    An `encoder` has `embed(token_ids[, token_types]) -> hidden`, `layer(hidden, lengths) -> hidden`, and
    `head(hidden, lengths)` of the whole text or `head(hidden)` of each token.
    A `causal-lm` model has the signatures of `models.lm.model`, with keys and values as explicit inputs and outputs.
    """

    kind: Kind
    residual_form: str = "standard"
    embed: nn.Module
    layers: nn.ModuleList
    head: nn.Module

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


def num_parameters(module: nn.Module) -> int:
    """Scalars in the parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
