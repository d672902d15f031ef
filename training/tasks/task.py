"""What every task can do, whatever its data."""

from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """inputs [N, ...] and targets [N, ...] that belong together."""

    inputs: Tensor
    targets: Tensor


class Task(Protocol):
    """Batches to learn from, examples held out, and how answers are judged."""

    @property
    def data(self) -> str:
        """What the examples are and where they come from, with the licence: a sentence for the card."""
        ...

    @property
    def metric(self) -> str:
        """What `score` counts."""
        ...

    def batch(self, size: int, random: Generator) -> Examples:
        """Examples to learn from, drawn with `random` alone."""
        ...

    def heldout(self) -> Examples:
        """Examples that no batch holds, always the same."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training makes small, a scalar."""
        ...

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """How good outputs are, in per cent; more is better."""
        ...
