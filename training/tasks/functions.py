"""Seven closed forms of two numbers, to be fitted all at once from exact values."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.special import bessel_j0

from training.tasks.score import explained
from training.tasks.task import Examples

_HELD_SEED, _HELD_ROWS = 1, 2000

# Ours, not the paper's list: smooth, oscillating, peaked, steep and with a kink, each of about unit size on the square.
FUNCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x y": lambda x, y: x * y,
    "exp(sin(pi x) + y^2) / e^2": lambda x, y: torch.exp(torch.sin(math.pi * x) + y * y - 2),
    "J0(20 (x + y) / 2)": lambda x, y: bessel_j0(10 * (x + y)),
    "sin(5 x) cos(3 y)": lambda x, y: torch.sin(5 * x) * torch.cos(3 * y),
    "exp(-8 (x^2 + y^2))": lambda x, y: torch.exp(-8 * (x * x + y * y)),
    "|x - y|": lambda x, y: (x - y).abs(),
    "tanh(5 (x + 2 y))": lambda x, y: torch.tanh(5 * (x + 2 * y)),
}


@dataclass(frozen=True, slots=True)
class Functions:
    """inputs [N, 2] float32 on the square -1..1; targets [N, 7] float32, one column a function."""

    data: str = (
        "values of seven closed forms at points drawn evenly from -1..1 x -1..1, new ones for every batch; 2,000 "
        "other points are held out"
    )
    metric: str = "variance explained, mean of seven functions, %"

    def batch(self, size: int, random: Generator) -> Examples:
        points = torch.rand(size, 2, generator=random) * 2 - 1
        x, y = points.unbind(dim=1)
        return Examples(points, torch.stack([function(x, y) for function in FUNCTIONS.values()], dim=1))

    def heldout(self) -> Examples:
        return self.batch(_HELD_ROWS, Generator().manual_seed(_HELD_SEED))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error in units of each function's variance over the batch."""
        return (1 - explained(outputs, targets)).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 100 * float(explained(outputs, targets).mean())
