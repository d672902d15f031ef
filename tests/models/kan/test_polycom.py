"""S102: what the polynomial activations are, and which activations they contain."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ArtifactError
from models.kan.polycom import PolyCom, PolyComConfig
from models.kan.polynomials import PolyNorm, PolyReLU


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3


def weigh(activation: PolyNorm | PolyReLU, cube: float, square: float, line: float) -> None:
    activation.weight.data = torch.tensor([cube, square, line])


def test_poly_norm_of_the_line_alone_is_rms_norm() -> None:
    activation, x = PolyNorm(), numbers(4, 7, 16)
    weigh(activation, 0.0, 0.0, 1.0)
    assert torch.allclose(activation(x), F.rms_norm(x, (16,), eps=1e-6), atol=1e-6)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_each_power_of_poly_norm_has_a_root_mean_square_of_one(power: int) -> None:
    activation, x = PolyNorm(), numbers(5, 32) * 1e3
    weigh(activation, float(power == 3), float(power == 2), float(power == 1))
    assert torch.allclose(activation(x).square().mean(dim=-1), torch.ones(5), atol=1e-5)
    direction = F.cosine_similarity(activation(x), x**power, dim=-1)
    assert torch.allclose(direction, torch.ones(5), atol=1e-6)


def test_poly_norm_as_it_is_made_is_a_third_of_each() -> None:
    x = torch.tensor([1.0, -2.0])
    squares = torch.tensor([1.0, 4.0])
    wanted = (x**3 / 32.5**0.5 + squares / 8.5**0.5 + x / 2.5**0.5) / 3
    assert torch.allclose(PolyNorm()(x), wanted, atol=1e-6)


def test_poly_relu_as_it_is_made_is_a_third_of_each() -> None:
    assert torch.allclose(PolyReLU()(torch.tensor([-5.0, 0.0, 3.0])), torch.tensor([0.0, 0.0, (27 + 9 + 3) / 3]))


def test_a_network_of_poly_relu_is_any_network_of_relu() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 9), nn.Linear(9, 2)
    activation, x = PolyReLU(), numbers(8, 6)
    weigh(activation, 0.0, 0.0, 1.0)
    assert torch.equal(last(activation(first(x))), last(torch.relu(first(x))))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"activation is 'gelu'; PolyCom has \['poly_norm', 'poly_relu'\]"):
        PolyComConfig(activation="gelu")


@pytest.mark.parametrize("name", ["poly_norm", "poly_relu"])
def test_activations_are_trained_in_every_layer(name: str) -> None:
    torch.manual_seed(0)
    model = PolyCom(PolyComConfig(6, 3, 8, 2, 3, name))
    model(numbers(4, 6)).square().sum().backward()
    slopes = [layer.act.weight.grad for layer in model.layers]
    assert len(slopes) == 3
    assert all(slope is not None and slope.abs().min() > 0 for slope in slopes)
