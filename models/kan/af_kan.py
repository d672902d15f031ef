"""S010, AF-KAN ("Activation Function-Based Kolmogorov-Arnold Networks", arXiv 2503.06112).

A layer reads each feature x_i through M = g + k products of two activations, phi_j(x_i) = (silu(x_i - lo_j)
silu(hi_j - x_i))^2 with learned phases that start at lo_j = (-k .. g - 1) / g and hi_j = lo_j + (k + 1) / g (the form
"quad1"). Where other KANs then have M weights an edge, M functions become one number a feature: a softmax over the
features weighs them by what a single row of M weights says ("global attention"), and a layer norm, a silu and one
matrix follow. Values of phi are brought to 0..1 before. The authors' code (github.com/hoangthangta/All-KAN) does so
over the whole batch, which makes an answer depend on its neighbours; here each sample is brought there alone. Theirs
remains as `normalisation="batch"`, which can be trained and is neither exported nor served. Their division by the L2
norm before it is left out: bringing to 0..1 undoes it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.artifact import TensorSpec
from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.kan.affine import FixedAffine
from models.layered import TensorStack, Whole

_TESTS = "tests/models/kan/test_af_kan.py"
_NORMALISATIONS = ("sample", "batch")
_COUPLED = (
    'normalisation = "batch" makes the answer to a row depend on the rows beside it; '
    'train with normalisation = "sample" to export and serve'
)
# The least range that is brought to 0..1, so that equal values are not divided by zero.
_MIN_RANGE = 1e-6

_ABOUT = About(
    "S010",
    "AF-KAN: Activation Function-Based Kolmogorov-Arnold Networks for Efficient Representation Learning",
    "arXiv 2503.06112",
    (
        Claim("g + k functions a feature cost one matrix", f"{_TESTS}::test_functions_cost_no_weights_on_the_edges"),
        Claim("a row answers alone as in a batch", f"{_TESTS}::test_a_row_does_not_see_its_neighbours"),
        Claim("upstream's batch-coupled form is refused", f"{_TESTS}::test_what_couples_a_batch_is_not_exported"),
    ),
)


@dataclass(frozen=True, slots=True)
class AFKanConfig:
    """widths: of the hidden layers. grid and order: g and k, together the functions a feature has."""

    num_features: int = 64
    num_classes: int = 10
    widths: tuple[int, ...] = (64,)
    grid: int = 3
    order: int = 3
    normalisation: str = "sample"

    def __post_init__(self) -> None:
        _check(self.grid, self.order, self.normalisation)


@dataclass(frozen=True, slots=True)
class AFKanStackConfig:
    """hidden_size: width of the stream and of every layer. grid and order: g and k."""

    num_features: int = 64
    num_classes: int = 10
    hidden_size: int = 40
    num_layers: int = 4
    grid: int = 3
    order: int = 3
    normalisation: str = "sample"

    def __post_init__(self) -> None:
        _check(self.grid, self.order, self.normalisation)


class AFKanLayer(nn.Module):
    """Functions of each feature, one number of them by attention over features, norm, activation and one matrix."""

    def __init__(self, num_inputs: int, num_outputs: int, config: AFKanConfig | AFKanStackConfig) -> None:
        super().__init__()
        low = torch.arange(-config.order, config.grid) / config.grid
        self.low, self.high = nn.Parameter(low), nn.Parameter(low + (config.order + 1) / config.grid)
        self.score = nn.Linear(len(low), 1)
        self.temperature = nn.Parameter(torch.tensor([num_inputs**0.5]))
        self.norm = nn.LayerNorm(num_inputs)
        self.linear = nn.Linear(num_inputs, num_outputs, bias=False)
        self.dims = (-2, -1) if config.normalisation == "sample" else (-3, -2, -1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, O]"""
        functions = self.functions(x)  # [B, F, M]
        weights = torch.softmax(self.score(functions) / self.temperature.clamp(min=1.0), dim=-2)  # [B, F, 1]
        mixed = (functions * weights).sum(dim=-1)  # [B, F]
        made: Tensor = self.linear(F.silu(self.norm(mixed)))
        return made

    def functions(self, x: Tensor) -> Tensor:
        """[B, F] -> values of phi, 0 to 1 within each sample [B, F, M]"""
        x = x.unsqueeze(-1)
        phi = (F.silu(x - self.low) * F.silu(self.high - x)).square()
        least, most = phi.amin(dim=self.dims, keepdim=True), phi.amax(dim=self.dims, keepdim=True)
        return (phi - least) / (most - least).clamp(min=_MIN_RANGE)


class AFKan(Whole):
    """A classifier as in the paper: layers of different widths one after the other, no stream."""

    about = _ABOUT
    Config = AFKanConfig

    def __init__(self, config: AFKanConfig) -> None:
        super().__init__()
        self.config = config
        self.units = FixedAffine(config.num_features)
        sizes = (config.num_features, *config.widths, config.num_classes)
        self.steps = nn.Sequential(*(AFKanLayer(a, b, config) for a, b in pairwise(sizes)))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C]"""
        (features,) = inputs
        logits: Tensor = self.steps(self.units(features))
        return logits

    @property
    def unservable(self) -> str:
        return _COUPLED if self.config.normalisation == "batch" else ""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="features", datatype="FP32", shape=(-1, self.config.num_features)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", datatype="FP32", shape=(-1, self.config.num_classes)),)


class AFKanBlock(nn.Module):
    """z + AF-KAN(norm(z)), as wide as it is deep in the stack: what makes chains of it possible."""

    def __init__(self, config: AFKanStackConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.layer = AFKanLayer(config.hidden_size, config.hidden_size, config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + self.layer(self.norm(hidden))
        return updated


class AFKanStack(TensorStack):
    """A classifier of AF-KAN layers of one width around a stream; the paper has no such form."""

    about = _ABOUT
    Config = AFKanStackConfig

    def __init__(self, config: AFKanStackConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embed = nn.Sequential(FixedAffine(config.num_features), AFKanLayer(config.num_features, width, config))
        self.layers = nn.ModuleList(AFKanBlock(config) for _ in range(config.num_layers))
        self.head = nn.Sequential(nn.LayerNorm(width), AFKanLayer(width, config.num_classes, config))

    @property
    def units(self) -> FixedAffine:
        """What brings raw features to the range of the phases."""
        return cast("FixedAffine", cast("nn.Sequential", self.embed)[0])

    @property
    def unservable(self) -> str:
        return _COUPLED if self.config.normalisation == "batch" else ""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="features", datatype="FP32", shape=(-1, self.config.num_features)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", datatype="FP32", shape=(-1, self.config.num_classes)),)


def _check(grid: int, order: int, normalisation: str) -> None:
    if grid < 1 or order < 0:
        raise ArtifactError(f"grid = {grid} and order = {order}; they must be at least 1 and 0")
    if normalisation not in _NORMALISATIONS:
        raise ArtifactError(f"normalisation is {normalisation!r}; known are {list(_NORMALISATIONS)}")
