"""Muon: momentum whose matrix updates are orthogonalised. Knows matrices, not the model they are from."""

from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 4


class Muon:
    """Nesterov momentum, then the nearest semi-orthogonal matrix; matrices of one shape are handled in one batch."""

    def __init__(self, matrices: Iterable[Tensor], momentum: float, weight_decay: float) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        self.groups = list(shapes.values())
        self.velocities = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        self.momentum, self.weight_decay = momentum, weight_decay

    def step(self, lr: float) -> None:
        """Update every matrix in place from its `grad`."""
        with torch.no_grad():
            for group, velocity in zip(self.groups, self.velocities, strict=True):
                gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])  # [N, rows, cols]
                velocity.lerp_(gradient, 1 - self.momentum)
                update = orthogonalize(gradient.lerp(velocity, self.momentum))
                scale = lr * max(1.0, update.shape[1] / update.shape[2]) ** 0.5
                for matrix, change in zip(group, update, strict=True):
                    matrix.mul_(1 - lr * self.weight_decay).add_(change, alpha=-scale)


def orthogonalize(update: Tensor) -> Tensor:
    """Bring all singular values of update [N, rows, cols] to about 1, by the quintic Newton-Schulz iteration."""
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal
