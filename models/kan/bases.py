"""Families of functions on -1..1 that edges of a KAN are made of; each gives as many functions as it is asked for."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

# A cubic spline has one interval at least.
MIN_FUNCTIONS = 4


def bspline(x: Tensor, count: int) -> Tensor:
    """Cubic B-splines on equal knots, summing to one on -1..1: x [...] -> [..., count].

    B(u) = (1/6) sum_i (-1)^i C(4, i) max(u - i, 0)^3 on 0..4.
    """
    width = 2 / (count - 3)
    starts = torch.arange(count, dtype=x.dtype, device=x.device) * width - 1 - 3 * width
    u = (x.unsqueeze(-1) - starts) / width
    powers = (math.comb(4, i) * (-1) ** i * F.relu(u - i) ** 3 for i in range(4))
    # Past its end a spline is zero, and cubes that cancel are not quite.
    return sum(powers, torch.zeros_like(u)) / 6 * (u < 4)


def chebyshev(x: Tensor, count: int) -> Tensor:
    """T_0 .. T_(count - 1) by T_n = 2 x T_(n-1) - T_(n-2): x [...] -> [..., count]."""
    found = [torch.ones_like(x), x]
    while len(found) < count:
        found.append(2 * x * found[-1] - found[-2])
    return torch.stack(found[:count], dim=-1)


def gaussian(x: Tensor, count: int) -> Tensor:
    """exp(-u^2) around equal centres, one distance of theirs wide: x [...] -> [..., count]."""
    u = _offsets(x, count)
    return torch.exp(-u * u)


def wavelet(x: Tensor, count: int) -> Tensor:
    """Mexican hats (1 - u^2) exp(-u^2 / 2) around equal centres: x [...] -> [..., count]."""
    u = _offsets(x, count)
    return (1 - u * u) * torch.exp(-u * u / 2)


FAMILIES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "bspline": bspline,
    "chebyshev": chebyshev,
    "gaussian": gaussian,
    "wavelet": wavelet,
}


def all_families(x: Tensor, count: int) -> Tensor:
    """Functions of every family, in their order: x [...] -> [..., families, count]."""
    return torch.stack([family(x, count) for family in FAMILIES.values()], dim=-2)


def _offsets(x: Tensor, count: int) -> Tensor:
    """Distances to `count` centres on -1..1, in units of the distance between two of them."""
    spacing = 2 / (count - 1)
    centres = torch.arange(count, dtype=x.dtype, device=x.device) * spacing - 1
    return (x.unsqueeze(-1) - centres) / spacing
