"""S099, quadratic neurons ("On Expressivity and Trainability of Quadratic Networks"), and ReLinear's start of them.

A neuron is s((w_r x + b_r)(w_g x + b_g) + w_b x^2 + c), x^2 of each number by itself, instead of s(w x + b). ReLinear
begins with w_g = 0, b_g = 1, w_b = 0 and c = 0, where the neuron is a conventional one, and lets the quadratic
parameters learn more slowly than the others (the recipe's part: `quadratic_parameters`). Both as the authors' page
(FengleiFan/ReLinear) says it. The residual form around the neurons is ours, and the norm before the head: two layers
grow with the fourth power of a point's distance, and so would the logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About, Claim
from models.mixers.flat import FlatConfig, FlatStack

_TESTS = "tests/models/mixers/test_quadratic.py"


@dataclass(frozen=True, slots=True)
class QuadraticConfig(FlatConfig):
    """relinear: start as a conventional network; else the quadratic parameters start at random."""

    num_features: int = 2
    num_classes: int = 4
    hidden_size: int = 4
    num_layers: int = 2
    input_shift: float = 0.0
    input_scale: float = 1.0
    relinear: bool = True


class QuadraticLinear(nn.Module):
    """(W_r x + b_r) * (W_g x + b_g) + W_b x^2 + c."""

    def __init__(self, size: int, num_outputs: int, relinear: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(size, num_outputs)
        self.gate, self.square = nn.Linear(size, num_outputs), nn.Linear(size, num_outputs)
        if relinear:
            for parameter in (self.gate.weight, self.square.weight, self.square.bias):
                nn.init.zeros_(parameter)
            nn.init.ones_(self.gate.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, in] -> [B, out]"""
        made: Tensor = self.linear(hidden) * self.gate(hidden) + self.square(hidden.square())
        return made


class QuadraticBlock(nn.Module):
    """x + relu(quadratic neurons of x)."""

    def __init__(self, config: QuadraticConfig) -> None:
        super().__init__()
        self.neurons = QuadraticLinear(config.hidden_size, config.hidden_size, config.relinear)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + F.relu(self.neurons(hidden))
        return updated


class Quadratic(FlatStack):
    """A classifier of flat feature rows made of quadratic neurons."""

    about = About(
        "S099",
        "On Expressivity and Trainability of Quadratic Networks",
        "arXiv 2110.06081",
        (
            Claim(
                "ReLinear starts as a conventional network", f"{_TESTS}::test_relinear_starts_as_a_conventional_network"
            ),
            Claim(
                "ReLinear keeps a deep network from blowing up", f"{_TESTS}::test_relinear_keeps_a_deep_network_finite"
            ),
            Claim("one quadratic neuron computes XOR", f"{_TESTS}::test_one_quadratic_neuron_computes_xor"),
        ),
    )
    Config = QuadraticConfig

    def __init__(self, config: QuadraticConfig) -> None:
        super().__init__(config, (QuadraticBlock(config) for _ in range(config.num_layers)))
        self.config, self.head = config, _behind_a_norm(self.head, config)


class ConventionalBlock(nn.Module):
    """x + relu(W x + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.neurons = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + F.relu(self.neurons(hidden))
        return updated


class Conventional(FlatStack):
    """The same network of conventional neurons."""

    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config, (ConventionalBlock(config.hidden_size) for _ in range(config.num_layers)))
        self.config, self.head = config, _behind_a_norm(self.head, config)


def quadratic_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """What of a network ReLinear lets learn more slowly: the gates and the squares."""
    for module in model.modules():
        if isinstance(module, QuadraticLinear):
            yield from module.gate.parameters()
            yield from module.square.parameters()


def _behind_a_norm(head: nn.Module, config: FlatConfig) -> nn.Module:
    """The norm has no weights of its own: those of the linear map behind it can say the same."""
    return nn.Sequential(nn.LayerNorm(config.hidden_size, elementwise_affine=False), head)
