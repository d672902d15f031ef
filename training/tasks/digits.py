"""Handwritten digits, 8x8 pixels of 0 to 16: flat rows, images, or one pixel after the other."""

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor
from torch.nn import functional as F

from training.tasks.task import Examples

Shape: TypeAlias = Literal["flat", "image", "sequence"]
_SHAPES: dict[Shape, tuple[int, ...]] = {"flat": (64,), "image": (1, 8, 8), "sequence": (64, 1)}
_SPLIT_SEED, _TEST_ROWS = 0, 360


@dataclass(frozen=True, slots=True)
class Digits:
    """Which of ten digits it is; images move by up to one pixel while learning.

    inputs [N, 64], [N, 1, 8, 8] or [N, 64, 1] float32 by `shape`; targets [N] int64. Of outputs [N, T, 10] the last
    step is the answer.
    """

    shape: Shape = "flat"
    smoothing: float = 0.1
    data: str = (
        'the UCI "Optical Recognition of Handwritten Digits" test part as scikit-learn ships it (1,797 images; '
        "E. Alpaydin and C. Kaynak, CC BY 4.0); 360 held out, stratified"
    )
    metric: str = "right answers, %"

    def batch(self, size: int, random: Generator) -> Examples:
        learned, _ = split()
        picked = torch.randint(len(learned.targets), (size,), generator=random)
        return Examples(self._shaped(moved(learned.inputs[picked], random)), learned.targets[picked])

    def heldout(self) -> Examples:
        _, held = split()
        return Examples(self._shaped(held.inputs), held.targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_answers(outputs), targets, label_smoothing=self.smoothing)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 100 * float((_answers(outputs).argmax(-1) == targets).float().mean())

    def _shaped(self, images: Tensor) -> Tensor:
        return images.reshape(-1, *_SHAPES[self.shape])


def _answers(outputs: Tensor) -> Tensor:
    return outputs if outputs.dim() == 2 else outputs[:, -1]


@cache
def split() -> tuple[Examples, Examples]:
    """Rows to learn from and rows held out, always the same: inputs [N, 64] float32, pixels of 0 to 16; targets [N]."""
    inputs, targets = load_digits(return_X_y=True)
    parts = train_test_split(inputs, targets, test_size=_TEST_ROWS, random_state=_SPLIT_SEED, stratify=targets)
    train_inputs, test_inputs, train_targets, test_targets = map(torch.as_tensor, parts)
    return Examples(train_inputs.float(), train_targets), Examples(test_inputs.float(), test_targets)


def moved(inputs: Tensor, random: Generator | None = None) -> Tensor:
    """Each image [B, 64] moved by -1, 0 or 1 pixel in both directions; empty pixels come in."""
    images = F.pad(inputs.view(-1, 8, 8), (1, 1, 1, 1))  # [B, 10, 10]
    corners = torch.randint(0, 3, (len(inputs), 2, 1), generator=random)
    rows, columns = corners[:, 0] + torch.arange(8), corners[:, 1] + torch.arange(8)  # [B, 8]
    return images[torch.arange(len(inputs))[:, None, None], rows[:, :, None], columns[:, None, :]].flatten(1)
