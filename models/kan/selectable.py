"""The layer of S020 (arXiv 2408.08338): every node chooses the family of functions its edges are made of.

y_o = b_o + sum_i (w_oi silu(x_i) + sum_f p_if sum_m c_oifm B_fm(tanh x_i)). While it is soft, p_i = softmax(a_i / T)
and every family has coefficients; once it is hard, p_i is one-hot and only the chosen family's are left, as many as a
KAN of one family has. tanh keeps a node in the range of all families.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.kan.bases import FAMILIES, all_families


class SelectableLayer(nn.Module):
    """Edges between nodes. temperature: of the softmax while soft; 0 takes the preferred family alone."""

    def __init__(self, num_inputs: int, num_outputs: int, num_functions: int, is_hard: bool) -> None:
        super().__init__()
        self.num_functions, self.is_hard, self.temperature = num_functions, is_hard, 1.0
        self.base = nn.Linear(num_inputs, num_outputs)
        sizes = (num_functions,) if is_hard else (len(FAMILIES), num_functions)
        deviation = (num_inputs * num_functions) ** -0.5
        self.coefficients = nn.Parameter(torch.randn(num_outputs, num_inputs, *sizes) * deviation)
        if is_hard:
            self._set_chosen(torch.zeros(num_inputs, dtype=torch.int64))
        else:
            self.preferences = nn.Parameter(torch.zeros(num_inputs, len(FAMILIES)))
        self.chosen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]"""
        functions = all_families(torch.tanh(x), self.num_functions) * self.shares().unsqueeze(-1)  # [..., I, N, M]
        read = functions.sum(dim=-2).flatten(-2) if self.is_hard else functions.flatten(-3)
        made: Tensor = self.base(F.silu(x)) + F.linear(read, self.coefficients.flatten(1))
        return made

    def shares(self) -> Tensor:
        """What part of each node each family is [I, N]; rows sum to one."""
        if self.is_hard:
            return self.chosen
        if self.temperature == 0:
            return F.one_hot(self.preferences.argmax(dim=-1), len(FAMILIES)).to(self.preferences)
        return torch.softmax(self.preferences / self.temperature, dim=-1)

    def choose(self, family: str) -> None:
        """Make every node of a hard layer that family: a KAN of one family. The coefficients stay."""
        index = list(FAMILIES).index(family)
        self._set_chosen(torch.full((self.base.in_features,), index))

    def harden(self) -> None:
        """Keep of every node the preferred family alone: coefficients [O, I, N, M] become [O, I, M]."""
        best = self.preferences.argmax(dim=-1)  # [I]
        kept = self.coefficients.data[:, torch.arange(len(best)), best]
        self.coefficients, self.is_hard = nn.Parameter(kept.clone()), True
        del self.preferences
        self._set_chosen(best)

    def _set_chosen(self, families: Tensor) -> None:
        chosen = F.one_hot(families, len(FAMILIES)).to(self.coefficients.dtype)
        self.register_buffer("chosen", chosen.to(self.coefficients.device))


def harden(model: nn.Module) -> None:
    """Every soft layer of a model, in place."""
    for layer in list(model.modules()):
        if isinstance(layer, SelectableLayer) and not layer.is_hard:
            layer.harden()
