"""What an encoder makes of its last hidden states: a vector, scores of a text, or scores of each token."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoders.block import make_norm
from models.encoders.config import DenseConfig, EncoderConfig, Pooling
from models.errors import ArtifactError
from models.lm.mlp import activation

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu}
# What a sentence-transformers directory may name behind a projection.
_MODULES: Mapping[str, type[nn.Module]] = {
    f"torch.nn.modules.{place}.{module.__name__}": module
    for place, modules in (
        ("activation", (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)),
        ("linear", (nn.Identity,)),
    )
    for module in modules
}


class Project(nn.Module):
    """A transform, if the head has one, and the projection to labels or vocabulary."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        head, width = config.head, config.hidden_size
        self.dense: nn.Module = nn.Identity()
        self.act: Callable[[Tensor], Tensor] = torch.tanh
        self.has_transform = head.transform is not None
        if head.transform is not None:
            self.dense = nn.Linear(width, width, bias=head.has_transform_bias)
            self.act = _FUNCTIONS.get(head.transform) or activation(head.transform)
        self.norm = make_norm(config) if head.has_transform_norm else nn.Identity()
        self.out = nn.Linear(width, head.num_outputs, bias=head.has_out_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., outputs]"""
        if self.has_transform:
            x = self.norm(self.act(self.dense(x)))
        projected: Tensor = self.out(x)
        return projected


class TokenHead(nn.Module):
    """Scores of each token it is given."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = make_norm(config) if config.norms_before else nn.Identity()
        self.project = Project(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, outputs]"""
        projected: Tensor = self.project(self.norm(hidden))
        return projected


class PooledHead(nn.Module):
    """One vector, or the scores, of each text."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        head = config.head
        self.norm = make_norm(config) if config.norms_before else nn.Identity()
        self.pooling, self.is_normal = head.pooling, head.is_normal
        self.project = Project(config) if head.num_outputs else nn.Identity()
        self.denses = nn.ModuleList(Dense(dense) for dense in head.denses)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[B, S, D] and lengths [B] -> [B, outputs]"""
        states = self.norm(hidden)
        pooled = torch.cat([pool(states, lengths, how) for how in self.pooling], dim=-1)
        pooled = self.project(pooled)
        for dense in self.denses:
            pooled = dense(pooled)
        return F.normalize(pooled, dim=-1) if self.is_normal else pooled


class Dense(nn.Module):
    """A projection of sentence-transformers, with its activation."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        if config.activation not in _MODULES:
            raise ArtifactError(
                f"{config.folder}/config.json says activation_function = {config.activation!r}; "
                f"known are {sorted(_MODULES)}"
            )
        self.linear = nn.Linear(config.in_features, config.out_features, bias=config.has_bias)
        self.act = _MODULES[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]"""
        projected: Tensor = self.act(self.linear(x))
        return projected


def pool(states: Tensor, lengths: Tensor, how: Pooling) -> Tensor:
    """One vector [B, D] of the states [B, S, D] of each text; padding has no part in it."""
    if how == "cls":
        return states[:, 0]
    if how == "lasttoken":
        last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1)
    is_token = (torch.arange(states.shape[1], device=states.device) < lengths[:, None])[:, :, None]
    if how == "max":
        return states.masked_fill(~is_token, float("-inf")).amax(dim=1)
    total = states.masked_fill(~is_token, 0.0).to(torch.float32).sum(dim=1)  # many small numbers, in any precision
    count = lengths[:, None].to(torch.float32)
    return (total / (count if how == "mean" else count.sqrt())).to(states.dtype)
