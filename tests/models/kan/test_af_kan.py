"""S010: what AF-KAN's layer computes, and that no row of a batch sees another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporters.export import export_checkpoint
from models import catalogue
from models.errors import ArtifactError
from models.kan.af_kan import AFKan, AFKanConfig, AFKanLayer, AFKanStack, AFKanStackConfig

SMALL = AFKanConfig(num_features=5, num_classes=3, widths=(4,), grid=4, order=2)


def seeded(config: AFKanConfig) -> AFKan:
    torch.manual_seed(0)
    return AFKan(config).eval()


def rows(count: int) -> Tensor:
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(1))


def test_a_layer_is_its_equation_number_by_number() -> None:
    torch.manual_seed(0)
    layer, x = AFKanLayer(5, 3, SMALL), rows(1)
    lows = [(j - 2) / 4 for j in range(6)]
    silu = torch.nn.functional.silu
    phi = torch.stack([torch.stack([(silu(v - lo) * silu(lo + 3 / 4 - v)) ** 2 for lo in lows]) for v in x[0]])
    phi = (phi - phi.min()) / (phi.max() - phi.min())  # [F, M]
    scores = torch.stack([(layer.score.weight[0] * f).sum() + layer.score.bias[0] for f in phi]) / 5**0.5
    mixed = (phi * (scores.exp() / scores.exp().sum())[:, None]).sum(dim=1)
    normal = (mixed - mixed.mean()) / (mixed.var(correction=0) + layer.norm.eps) ** 0.5
    assert torch.allclose(layer(x)[0], layer.linear.weight @ silu(normal), atol=1e-5)


def test_functions_cost_no_weights_on_the_edges() -> None:
    fine = AFKanLayer(64, 64, replace(SMALL, grid=9))
    coarse = AFKanLayer(64, 64, replace(SMALL, grid=4))
    more = sum(p.numel() for p in fine.parameters()) - sum(p.numel() for p in coarse.parameters())
    assert more == 5 * 3  # for each function two phases and a score, whatever the number of edges
    assert fine.functions(torch.rand(2, 64)).shape == (2, 64, 11)


@pytest.mark.parametrize("neighbour", [0.0, 1e3], ids=["still", "loud"])
def test_a_row_does_not_see_its_neighbours(neighbour: float) -> None:
    model, batch = seeded(SMALL), rows(4)
    batch[1] = neighbour
    with torch.inference_mode():
        assert torch.allclose(model(batch)[:1], model(batch[:1]), atol=1e-6)


def test_upstreams_normalisation_does_see_them() -> None:
    model, batch = seeded(replace(SMALL, normalisation="batch")), rows(4)
    batch[0] = 4 + batch[0] / 10  # far out, where functions hardly differ: alone they fill 0..1 all the same
    with torch.inference_mode():
        assert (model(batch)[:1] - model(batch[:1])).abs().max() > 1e-3
        assert torch.allclose(model(batch[:1]), seeded(SMALL)(batch[:1]))  # alone, both are the same


@pytest.mark.parametrize(
    "model",
    [AFKan(replace(SMALL, normalisation="batch")), AFKanStack(AFKanStackConfig(5, 3, 4, 2, normalisation="batch"))],
    ids=["whole", "stack"],
)
def test_what_couples_a_batch_is_not_exported(model: AFKan | AFKanStack, tmp_path: Path) -> None:
    catalogue.save(model, tmp_path / "coupled")
    with pytest.raises(ArtifactError, match=r'normalisation = "batch".*train with normalisation = "sample"'):
        export_checkpoint(tmp_path / "coupled", tmp_path / "repository")
    assert not (tmp_path / "repository" / "coupled").exists()


def test_equal_features_are_not_divided_by_zero() -> None:
    layer = AFKanLayer(1, 2, replace(SMALL, grid=1, order=0))  # one feature, one function: no range at all
    assert torch.isfinite(layer(torch.ones(3, 1))).all()


def test_what_is_no_grid_or_no_normalisation_is_refused() -> None:
    with pytest.raises(ArtifactError, match="grid = 0"):
        AFKanConfig(grid=0)
    with pytest.raises(ArtifactError, match=r"normalisation is 'layer'; known are \['sample', 'batch'\]"):
        AFKanStackConfig(normalisation="layer")
