"""S102, PolyCom ("Polynomial Composition Activations", arXiv 2411.03884): learned activations of degree three.

PolyReLU(x) = a_3 relu(x)^3 + a_2 relu(x)^2 + a_1 relu(x) + a_0 and PolyNorm(x) = a_3 n(x^3) + a_2 n(x^2) + a_1 n(x)
+ a_0, where n divides by the root mean square over the last dimension. Names, order and first values of the weights
are those of the authors' code (github.com/BryceZhuo/PolyCom): the highest power first, 1/3 each, a_0 = 0.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What keeps a root mean square away from zero, as in the authors' code.
_EPS = 1e-6


class PolyReLU(nn.Module):
    """A cubic of relu(x); element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] -> [..., F]"""
        x = F.relu(x)
        cube, square, line = self.weight
        made: Tensor = cube * (x * x * x) + square * (x * x) + line * x + self.bias
        return made


class PolyNorm(nn.Module):
    """A cubic whose powers are each normalised over the last dimension, so that none can outgrow the others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] -> [..., F]"""
        cube, square, line = self.weight
        made: Tensor = cube * _normal(x * x * x) + square * _normal(x * x) + line * _normal(x) + self.bias
        return made


# By the name in a config.json (hidden_act).
POLYNOMIALS: Mapping[str, type[nn.Module]] = {"poly_relu": PolyReLU, "poly_norm": PolyNorm}


def _normal(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + _EPS)
