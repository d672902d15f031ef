"""S088, G2GNet ("Neuro-inspired Ensemble-to-Ensemble Communication Primitives"): groups of neurons talk to groups.

The neurons of a layer are ensembles. A neuron hears the whole ensemble of its own number in the layer before, and a few
neurons of others; everything else is absent, three weights of four by default. While training, the weakest edges go
and as many others come (prune and regrow), those between neurons that fire together first (Hebbian); that is the
recipe's part, in `training.rewiring`.

The abstract gives the parts and the sparsity. Which groups talk, how many edges go between others, and the residual
form are our choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import About, Claim
from models.errors import ArtifactError
from models.mixers.flat import FlatConfig, FlatStack

_TESTS = "tests/models/mixers/test_g2gnet.py"


@dataclass(frozen=True, slots=True)
class G2GNetConfig(FlatConfig):
    """density is the part of the weights that are there; a group takes 1 / num_groups of that for itself.

    Raises ArtifactError where groups do not fill the neurons, or take more than there is.
    """

    hidden_size: int = 64
    num_layers: int = 3
    expansion: int = 2
    num_groups: int = 8
    density: float = 0.25

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_groups:
            raise ArtifactError(
                f"{self.num_groups} groups do not fill {self.hidden_size} neurons; choose a num_groups that divides it"
            )
        if not 1 / self.num_groups <= self.density <= 1:
            raise ArtifactError(
                f"a density of {self.density} is not between 1/{self.num_groups}, what {self.num_groups} groups take "
                "for themselves, and 1; choose a number between, or more groups"
            )


class SparseLinear(nn.Module):
    """A linear map of which most weights are absent: only those that are there are parameters.

    values [E] of the edges, places [E] int64 of each in the flattened [out, in] matrix, each at most once.
    """

    def __init__(self, size: int, num_outputs: int, num_groups: int, density: float) -> None:
        super().__init__()
        self.shape = (num_outputs, size)
        self.register_buffer("places", group_edges(size, num_outputs, num_groups, density))
        self.places: Tensor
        # As many inputs as there are decide a neuron's variance, not as many as there could be.
        bound = (density * size) ** -0.5
        self.values = nn.Parameter(torch.empty(len(self.places)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_outputs).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, in] -> [B, out]"""
        return F.linear(hidden, self.dense(), self.bias)

    def dense(self) -> Tensor:
        """The weights [out, in], zero where there is no edge."""
        absent = self.values.new_zeros(self.shape[0] * self.shape[1])
        return absent.scatter(0, self.places, self.values).view(self.shape)


class G2GBlock(nn.Module):
    """x + W_2 relu(W_1 norm(x)), both maps from groups to groups."""

    def __init__(self, config: G2GNetConfig) -> None:
        super().__init__()
        inner = config.hidden_size * config.expansion
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = SparseLinear(config.hidden_size, inner, config.num_groups, config.density)
        self.down = SparseLinear(inner, config.hidden_size, config.num_groups, config.density)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, D]"""
        updated: Tensor = hidden + self.down(F.relu(self.up(self.norm(hidden))))
        return updated


class G2GNet(FlatStack):
    """A classifier of flat feature rows whose neurons form groups and mostly hear their own."""

    about = About(
        "S088",
        "Neuro-inspired Ensemble-to-Ensemble Communication Primitives for Sparse and Efficient ANNs",
        "arXiv 2508.14140",
        (
            Claim("three weights of four are absent", f"{_TESTS}::test_three_weights_of_four_are_absent"),
            Claim(
                "without edges between groups a group hears its own alone",
                f"{_TESTS}::test_a_group_hears_its_own_alone",
            ),
            Claim("rewiring keeps the number of edges", f"{_TESTS}::test_rewiring_keeps_the_number_of_edges"),
            Claim(
                "Hebbian rewiring joins the neurons that fire together",
                f"{_TESTS}::test_hebbian_rewiring_joins_what_fires_together",
            ),
        ),
    )
    Config = G2GNetConfig

    def __init__(self, config: G2GNetConfig) -> None:
        super().__init__(config, (G2GBlock(config) for _ in range(config.num_layers)))
        self.config = config


def group_edges(size: int, num_outputs: int, num_groups: int, density: float) -> Tensor:
    """Places [E] of the weights that are there: each group's own, and of the others as many as `density` leaves."""
    theirs = torch.arange(size) * num_groups // size
    own = (torch.arange(num_outputs) * num_groups // num_outputs)[:, None] == theirs[None, :]
    wanted = torch.where(own, 2.0, torch.rand(num_outputs, size)).flatten()
    return wanted.argsort(descending=True)[: round(density * num_outputs * size)]
