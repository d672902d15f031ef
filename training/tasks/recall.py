"""Associative recall: pairs of a key and a value are read, then keys alone, each to be answered with its value."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from training.tasks.task import Examples

_SEQUENCES, _SEED = 512, 1_000_000


@dataclass(frozen=True, slots=True)
class Recall:
    """Keys are tokens 0 to num_keys - 1, values the num_values after them; each of `num_pairs` keys is asked once.

    inputs [N, 3 * num_pairs] int64: key, value, key, value, ..., then the same keys in another order; targets
    [N, num_pairs] int64, values counted from 0, one for each of the last steps.
    """

    num_keys: int = 8
    num_values: int = 8
    num_pairs: int = 8
    metric: str = "values recalled, %"

    @property
    def data(self) -> str:
        return (
            f"generated: {self.num_pairs} pairs of one of {self.num_keys} keys and one of {self.num_values} values, "
            f"then the keys in another order; {_SEQUENCES} held out, drawn with a seed of their own"
        )

    def batch(self, size: int, random: Generator) -> Examples:
        keys = torch.rand(size, self.num_keys, generator=random).argsort(1)[:, : self.num_pairs]
        values = torch.randint(self.num_values, keys.shape, generator=random)
        order = torch.rand(keys.shape, generator=random).argsort(1)
        pairs = torch.stack((keys, values + self.num_keys), dim=-1).flatten(1)
        return Examples(torch.cat((pairs, keys.gather(1, order)), dim=1), values.gather(1, order))

    def heldout(self) -> Examples:
        return self.batch(_SEQUENCES, torch.Generator().manual_seed(_SEED))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, -self.num_pairs :].flatten(0, 1), targets.flatten())

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 100 * float((outputs[:, -self.num_pairs :].argmax(-1) == targets).float().mean())
