"""Two linear maps with a GELU between them, over the last axis: the MLP that every mixer is made of."""

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2."""

    def __init__(self, size: int, inner_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(size, inner_size)
        self.down = nn.Linear(inner_size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., size] -> [..., size]"""
        mixed: Tensor = self.down(F.gelu(self.up(hidden)))
        return mixed
