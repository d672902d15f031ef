"""S020, S-KAN ("Activation Space Selectable Kolmogorov-Arnold Networks", arXiv 2408.08338).

A KAN whose nodes choose between families of functions (`models.kan.selectable`): B-splines, Chebyshev polynomials,
Gaussians and Mexican hats. The paper trains in three stages, which the recipe follows: all families together, then the
choice, then only what was chosen. What is exported and served is the hard form, in which each node has one family.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, nn

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.kan.affine import FixedAffine
from models.kan.bases import MIN_FUNCTIONS
from models.kan.selectable import SelectableLayer, harden
from models.layered import Whole

_TESTS = "tests/models/kan/test_s_kan.py"
SOFT = (
    "is_hard = false is the form for training, in which every node is a mixture of all families; call harden() and "
    "save it again to export and serve"
)


@dataclass(frozen=True, slots=True)
class SKanConfig:
    """widths: of the hidden layers. num_functions: of each family. is_hard: each node has one family."""

    num_features: int = 2
    num_outputs: int = 7
    widths: tuple[int, ...] = (12,)
    num_functions: int = 8
    is_hard: bool = True

    def __post_init__(self) -> None:
        check_functions(self.num_functions)


class SKan(Whole):
    """A function of several numbers to several numbers."""

    about = About(
        "S020",
        "Activation Space Selectable Kolmogorov-Arnold Networks",
        "arXiv 2408.08338",
        (
            Claim(
                "the hard form of a one-hot selection is the soft net, exported too",
                f"{_TESTS}::test_the_export_of_a_one_hot_selection_is_the_soft_net",
            ),
            Claim(
                "once chosen, it has the weights of a KAN of one family",
                f"{_TESTS}::test_a_hard_net_is_as_large_as_one_of_a_single_family",
            ),
        ),
    )
    Config = SKanConfig

    def __init__(self, config: SKanConfig) -> None:
        super().__init__()
        self.config = config
        self.units = FixedAffine(config.num_features)
        sizes = (config.num_features, *config.widths, config.num_outputs)
        self.steps = nn.Sequential(
            *(SelectableLayer(a, b, config.num_functions, config.is_hard) for a, b in pairwise(sizes))
        )
        self.answer_units = FixedAffine(config.num_outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Features [B, F] -> values [B, O]"""
        (features,) = inputs
        values: Tensor = self.answer_units(self.steps(self.units(features)))
        return values

    def harden(self) -> None:
        """Make every node the family it prefers, in place."""
        harden(self)
        self.config = replace(self.config, is_hard=True)

    @property
    def unservable(self) -> str:
        return "" if self.config.is_hard else SOFT

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="features", datatype="FP32", shape=(-1, self.config.num_features)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="values", datatype="FP32", shape=(-1, self.config.num_outputs)),)


def check_functions(count: int) -> None:
    """Raise ArtifactError for fewer functions than a cubic spline has."""
    if count < MIN_FUNCTIONS:
        raise ArtifactError(f"num_functions = {count}; a cubic spline has at least {MIN_FUNCTIONS}")
