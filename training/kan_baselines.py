"""What the KANs are held against: networks of equal budget that are trained beside them and not shipped."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.kan.affine import FixedAffine


class Plain(nn.Module):
    """A network between fixed units."""

    def __init__(self, units: FixedAffine, network: nn.Module, answer_units: FixedAffine | None = None) -> None:
        super().__init__()
        self.units, self.network, self.answer_units = units, network, answer_units or nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, O]"""
        answers: Tensor = self.answer_units(self.network(self.units(features)))
        return answers


class ReLUKanLayer(nn.Module):
    """A weight for each function (relu(x - lo_j) relu(hi_j - x))^2 of each edge (ReLU-KAN, arXiv 2406.02075).

    The functions are scaled so that each reaches one.
    """

    def __init__(self, num_inputs: int, num_outputs: int, grid: int = 3, order: int = 3) -> None:
        super().__init__()
        low = torch.arange(-order, grid) / grid
        self.low, self.high = nn.Parameter(low), nn.Parameter(low + (order + 1) / grid)
        self.scale = 16 * grid**4 / (order + 1) ** 4
        self.linear = nn.Linear(num_inputs * len(low), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, O]"""
        x = x.unsqueeze(-1)
        bumps = (torch.relu(x - self.low) * torch.relu(self.high - x)).square() * self.scale
        made: Tensor = self.linear(bumps.flatten(1))
        return made


def relu_kan(*sizes: int) -> nn.Module:
    """Layers of ReLU-KAN of these sizes."""
    return nn.Sequential(*(ReLUKanLayer(a, b) for a, b in pairwise(sizes)))


def mlp(*sizes: int) -> nn.Module:
    """Linear layers of these sizes with silu between them."""
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def convolutions(*channels: int, places: int, num_classes: int) -> nn.Module:
    """3 x 3 convolutions of stride two with relu, and a linear classifier of all that is left."""
    layers = [layer for a, b in pairwise(channels) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * places, num_classes))
