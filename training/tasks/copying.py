"""Copying: symbols are read, then as many blanks, at each of which the next symbol is to be said again."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from training.tasks.task import Examples

_SEQUENCES, _SEED = 512, 1_000_000


@dataclass(frozen=True, slots=True)
class Copying:
    """Symbols 0 to num_symbols - 1 and, as token num_symbols, the blank.

    inputs [N, 2 * length] int64; targets [N, length] int64, one for each blank.
    """

    num_symbols: int = 7
    length: int = 12
    metric: str = "symbols copied, %"

    @property
    def data(self) -> str:
        return (
            f"generated: {self.length} of {self.num_symbols} symbols, then {self.length} blanks; "
            f"{_SEQUENCES} held out, drawn with a seed of their own"
        )

    def batch(self, size: int, random: Generator) -> Examples:
        symbols = torch.randint(self.num_symbols, (size, self.length), generator=random)
        return Examples(torch.cat((symbols, torch.full_like(symbols, self.num_symbols)), dim=1), symbols)

    def heldout(self) -> Examples:
        return self.batch(_SEQUENCES, torch.Generator().manual_seed(_SEED))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, -self.length :].flatten(0, 1), targets.flatten())

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 100 * float((outputs[:, -self.length :].argmax(-1) == targets).float().mean())
