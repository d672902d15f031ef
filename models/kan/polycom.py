"""S102, PolyCom ("Polynomial Composition Activations"): a residual MLP whose activation is learned.

z + W_2 act(W_1 norm(z)), act = PolyNorm or PolyReLU (section 2), in the place where transformers have GELU. The same
activations are options of language models: `hidden_act` "poly_norm" or "poly_relu" in their config.json.
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.kan.affine import FixedAffine
from models.kan.polynomials import POLYNOMIALS
from models.layered import TensorStack
from models.mixers.flat import NormedClassifier

_TESTS = "tests/models/kan/test_polycom.py"


@dataclass(frozen=True, slots=True)
class PolyComConfig:
    """activation: "poly_norm" or "poly_relu"; the middle of a block is `expansion` times as wide as the stream."""

    num_features: int = 64
    num_classes: int = 10
    hidden_size: int = 40
    expansion: int = 2
    num_layers: int = 6
    activation: str = "poly_norm"

    def __post_init__(self) -> None:
        if self.activation not in POLYNOMIALS:
            raise ArtifactError(f"activation is {self.activation!r}; PolyCom has {sorted(POLYNOMIALS)}")


class Projection(nn.Module):
    """Raw features to the residual stream."""

    def __init__(self, config: PolyComConfig) -> None:
        super().__init__()
        self.units = FixedAffine(config.num_features)
        self.linear = nn.Linear(config.num_features, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, D]"""
        hidden: Tensor = self.linear(self.units(features))
        return hidden


class PolyComBlock(nn.Module):
    """z + W_2 act(W_1 norm(z))."""

    def __init__(self, config: PolyComConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.hidden_size * config.expansion)
        self.act = POLYNOMIALS[config.activation]()
        self.down = nn.Linear(config.hidden_size * config.expansion, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + self.down(self.act(self.up(self.norm(hidden))))
        return updated


class PolyCom(TensorStack):
    """A classifier of flat feature rows with polynomial activations."""

    about = About(
        "S102",
        "Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models",
        "arXiv 2411.03884",
        (
            Claim(
                "PolyNorm with weights (0, 0, 1) is RMS norm", f"{_TESTS}::test_poly_norm_of_the_line_alone_is_rms_norm"
            ),
            Claim(
                "a PolyReLU network of the same size is any ReLU network",
                f"{_TESTS}::test_a_network_of_poly_relu_is_any_network_of_relu",
            ),
        ),
    )
    Config = PolyComConfig

    def __init__(self, config: PolyComConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Projection(config)
        self.layers = nn.ModuleList(PolyComBlock(config) for _ in range(config.num_layers))
        self.head = NormedClassifier(config.hidden_size, config.num_classes)

    @property
    def units(self) -> FixedAffine:
        """What brings raw features to about zero mean, unit range."""
        return cast("Projection", self.embed).units

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="features", datatype="FP32", shape=(-1, self.config.num_features)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", datatype="FP32", shape=(-1, self.config.num_classes)),)
