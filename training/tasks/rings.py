"""Points of the plane on four rings around zero, blurred: which ring it is."""

from dataclasses import dataclass
from math import tau

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from training.tasks.task import Examples

_HELDOUT_ROWS, _HELDOUT_SEED = 2000, 1_000_003


@dataclass(frozen=True, slots=True)
class Rings:
    """inputs [N, 2] float32, targets [N] int64; the rings have the radii 1/4, 2/4, 3/4 and 1.

    blur: the standard deviation of the radius. With 0.06, nobody can be right for more than 97.2 % of all points.
    """

    num_rings: int = 4
    blur: float = 0.06
    data: str = "generated: points on four rings around zero, the radius blurred; 2,000 held out"
    metric: str = "right answers, %"

    def batch(self, size: int, random: Generator) -> Examples:
        return self._drawn(size, random)

    def heldout(self) -> Examples:
        return self._drawn(_HELDOUT_ROWS, torch.Generator().manual_seed(_HELDOUT_SEED))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 100 * float((outputs.argmax(-1) == targets).float().mean())

    def _drawn(self, size: int, random: Generator) -> Examples:
        rings = torch.randint(self.num_rings, (size,), generator=random)
        radius = (rings + 1) / self.num_rings + self.blur * torch.randn(size, generator=random)
        angle = tau * torch.rand(size, generator=random)
        return Examples(torch.stack((radius * angle.cos(), radius * angle.sin()), 1), rings)
