"""What follows attention in a decoder layer: an MLP, or a mixture of experts. Parameter names are Hugging Face's."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ArtifactError
from models.kan.polynomials import POLYNOMIALS
from models.lm.config import ExpertsConfig, LMConfig
from models.lm.linear import make_linear


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name in a config.json. Raises ArtifactError."""
    if name not in _ACTIVATIONS:
        raise ArtifactError(f"config.json says the activation is {name!r}; known are {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def make_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name, or a learned one with weights of its own (PolyCom). Raises ArtifactError."""
    if name not in {*_ACTIVATIONS, *POLYNOMIALS}:
        raise ArtifactError(
            f"config.json says the activation is {name!r}; known are {sorted({*_ACTIVATIONS, *POLYNOMIALS})}"
        )
    return POLYNOMIALS[name]() if name in POLYNOMIALS else _ACTIVATIONS[name]


class MLP(nn.Module):
    """Up, activation, down (GPT-2)."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.act = make_activation(config.activation)
        self.up_proj = make_linear(config, config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        projected: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return projected


class GatedMLP(nn.Module):
    """SwiGLU and its kin (arXiv 2002.05202, section 2)."""

    def __init__(self, config: LMConfig, size: int | None = None) -> None:
        super().__init__()
        size = size or config.intermediate_size
        self.act = make_activation(config.activation)
        self.gate_proj = make_linear(config, config.hidden_size, size, config.mlp_bias)
        self.up_proj = make_linear(config, config.hidden_size, size, config.mlp_bias)
        self.down_proj = make_linear(config, size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        projected: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return projected


class Experts(nn.Module):
    """Gated MLPs of which each token visits the few that the router likes best (arXiv 2409.02060, section 2)."""

    def __init__(self, config: LMConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, experts.intermediate_size
        self.act = make_activation(config.activation)
        self.per_token, self.has_normal_weights = experts.per_token, experts.has_normal_weights
        self.gate = nn.Linear(width, experts.count, bias=False)
        self.gate_up_proj = nn.Parameter(torch.normal(0.0, width**-0.5, (experts.count, 2 * size, width)))
        self.down_proj = nn.Parameter(torch.normal(0.0, size**-0.5, (experts.count, width, size)))

    @property
    def num_active_weights(self) -> int:
        """Weights that one token is multiplied with."""
        per_expert = (self.gate_up_proj.numel() + self.down_proj.numel()) // len(self.down_proj)
        return self.per_token * per_expert

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        weights, chosen = torch.softmax(self.gate(x), dim=-1, dtype=torch.float32).topk(self.per_token, dim=-1)
        if self.has_normal_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)  # [B, S, k], as chosen
        if torch.compiler.is_exporting() or torch._C._get_tracing_state():
            return self.dense(x, weights, chosen)
        return self.sparse(x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)).view_as(x)

    def sparse(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Each expert on its own tokens: x [N, D], weights and chosen [N, k] -> [N, D]."""
        mixed = torch.zeros_like(x)
        for expert in torch.unique(chosen).tolist():
            token, place = torch.nonzero(chosen == expert, as_tuple=True)
            gate, up = F.linear(x[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            answer = F.linear(self.act(gate) * up, self.down_proj[expert])
            mixed.index_add_(0, token, answer * weights[token, place, None])
        return mixed

    def dense(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Every expert on every token, most with weight zero: a graph that no data changes, for exporters.

        x [B, S, D], weights and chosen [B, S, k] -> [B, S, D].
        """
        count, _, size = self.down_proj.shape
        each = torch.zeros(*x.shape[:2], count, dtype=x.dtype, device=x.device).scatter(2, chosen, weights)  # [B, S, E]
        both = F.linear(x, self.gate_up_proj.flatten(0, 1)).view(*x.shape[:2], count, 2 * size)
        gate, up = both.chunk(2, dim=-1)  # [B, S, E, I]
        inner = (self.act(gate) * up * each.unsqueeze(-1)).flatten(2)  # [B, S, E * I]
        return F.linear(inner, self.down_proj.transpose(0, 1).flatten(1))


class SharingExperts(Experts):
    """Experts beside one that every token visits, as much as a gate of its own says (Qwen MoE)."""

    def __init__(self, config: LMConfig, experts: ExpertsConfig, shared_size: int) -> None:
        super().__init__(config, experts)
        self.shared_expert = GatedMLP(config, shared_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        shared: Tensor = torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return super().forward(x) + shared


class NoMLP(nn.Module):
    """What is left of a layer's MLP when it was dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> zeros [B, S, D]"""
        return torch.zeros_like(x)


def make_mlp(config: LMConfig, layer: int) -> nn.Module:
    """What one layer has after attention. Raises ArtifactError for an activation that is not known."""
    experts = config.experts
    if layer in config.without_mlp:
        return NoMLP()
    if experts is None or layer not in experts.layers:
        return GatedMLP(config) if config.is_gated else MLP(config)
    if experts.shared_size is None:
        return Experts(config, experts)
    return SharingExperts(config, experts, experts.shared_size)
