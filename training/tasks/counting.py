"""Counting modulo m: after every symbol of a string, what all of them add up to. Modulo 2 it is parity."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from training.tasks.task import Examples

_STRINGS, _SEED = 128, 1_000_000


@dataclass(frozen=True, slots=True)
class Counting:
    """Symbols 0 to modulus - 1; `length` of them to learn from, `times` as many held out.

    inputs [N, T] int64; targets [N, T] int64, the sum so far modulo `modulus`. Scored is the last part, of `length`
    steps, of the long strings alone.
    """

    modulus: int = 2
    length: int = 40
    times: int = 6

    @property
    def data(self) -> str:
        return (
            f"generated strings of {self.length} symbols 0 to {self.modulus - 1}, what they add up to modulo "
            f"{self.modulus} after each; held out are {_STRINGS} of {self.times} times the length"
        )

    @property
    def metric(self) -> str:
        return f"right sums modulo {self.modulus} in the last sixth of strings {self.times} times as long, %"

    def batch(self, size: int, random: Generator) -> Examples:
        return self._drawn(size, self.length, random)

    def heldout(self) -> Examples:
        return self._drawn(_STRINGS, self.length * self.times, torch.Generator().manual_seed(_SEED))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 100 * float((outputs.argmax(-1) == targets)[:, -self.length :].float().mean())

    def _drawn(self, size: int, length: int, random: Generator) -> Examples:
        inputs = torch.randint(self.modulus, (size, length), generator=random)
        return Examples(inputs, inputs.cumsum(1) % self.modulus)
