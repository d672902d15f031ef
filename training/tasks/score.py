"""How near predicted numbers are."""

from torch import Tensor


def explained(outputs: Tensor, targets: Tensor) -> Tensor:
    """The part of the variance of each column that is explained: [N, O], [N, O] -> [O], 1 at best."""
    error = (outputs - targets).square().mean(dim=0)
    return 1 - error / targets.var(dim=0, correction=0)
