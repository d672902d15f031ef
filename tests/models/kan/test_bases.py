"""The families of functions, against the definitions they were derived from."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from models.kan.bases import FAMILIES, MIN_FUNCTIONS, all_families, bspline, chebyshev

X = torch.linspace(-1, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize("count", [4, 5, 9])
def test_splines_are_those_of_cox_and_de_boor(count: int) -> None:
    width = 2 / (count - 3)
    knots = -1 + width * (np.arange(count + 4) - 3)
    wanted = BSpline(knots, np.eye(count), 3)(X.numpy())
    np.testing.assert_allclose(bspline(X, count).numpy(), wanted, atol=1e-12)


def test_splines_sum_to_one_and_are_nothing_outside() -> None:
    assert torch.allclose(bspline(X, 7).sum(dim=-1), torch.ones_like(X))
    assert not bspline(torch.tensor([-9.0, 9.0]), 7).any()


def test_chebyshev_polynomials_are_cosines() -> None:
    orders = torch.arange(8)
    assert torch.allclose(chebyshev(X, 8), torch.cos(orders * torch.arccos(X)[:, None]), atol=1e-12)


@pytest.mark.parametrize("family", ["gaussian", "wavelet"])
def test_bells_and_hats_are_one_at_their_centres_and_even_around_them(family: str) -> None:
    values = FAMILIES[family](X, 5)  # centres -1, -0.5, 0, 0.5, 1
    assert torch.equal(values[::50].diagonal(), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(values[:, 2], values[:, 2].flip(0))


def test_hats_have_no_area() -> None:
    wide = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    assert abs(float(torch.trapezoid(FAMILIES["wavelet"](wide, 5)[:, 2], wide))) < 1e-9


def test_every_family_gives_as_many_functions_and_no_two_the_same() -> None:
    values = all_families(X, MIN_FUNCTIONS)
    assert values.shape == (201, len(FAMILIES), MIN_FUNCTIONS)
    assert (torch.cdist(values.flatten(1).T, values.flatten(1).T) + torch.eye(16) > 0.1).all()
