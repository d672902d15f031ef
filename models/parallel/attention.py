"""Attention over one rank's heads, where queries and keys are normed over the heads of all ranks (OLMo, OLMo 2)."""

import torch
from torch import Tensor, nn

from models.lm.attention import Attention
from models.lm.config import LMConfig
from models.parallel.group import Group


class SpreadAttention(Attention):
    """Its RMS norms read one number a token of every rank: two sums of squares, added up in one small all-reduce.

    Nothing can be computed meanwhile but what the values need, so it is waited for at once.
    """

    def __init__(self, config: LMConfig, layer: int, group: Group, num_heads: int, num_kv_heads: int) -> None:
        """config: of this rank; num_heads, num_kv_heads: of the whole model."""
        super().__init__(config, layer)
        self.group, self.eps = group, config.norm_eps
        self.size, self.kv_size = num_heads * self.head_size, num_kv_heads * self.head_size
        # Keys that several ranks have are summed up as often.
        self.num_copies = config.num_key_value_heads * group.size // num_kv_heads

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self.q_proj(x), self.k_proj(x)  # [B, S, H K], [B, S, G K]
        exact = torch.promote_types(x.dtype, torch.float32)
        squares = torch.stack([part.to(exact).square().sum(dim=-1) for part in (query, key)], dim=-1)  # [B, S, 2]
        self.group.all_reduce(squares).wait()
        query = self._scaled(query, squares[..., :1] / self.size, self.q_norm)
        key = self._scaled(key, squares[..., 1:] / (self.kv_size * self.num_copies), self.k_norm)
        return self._split(self._bounded(query)), self._split(self._bounded(key))

    def _scaled(self, x: Tensor, mean: Tensor, norm: nn.Module) -> Tensor:
        """RMSNorm (arXiv 1910.07467, equation 4) of x [B, S, n] whose mean square [B, S, 1] is known."""
        return (x.to(mean.dtype) * torch.rsqrt(mean + self.eps) * norm.get_parameter("weight")).type_as(x)
