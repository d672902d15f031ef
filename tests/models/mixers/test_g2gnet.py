"""G2GNet: how many weights there are, who hears whom, and what rewiring moves."""

import pytest
import torch

from models.errors import ArtifactError
from models.layered import num_parameters
from models.mixers.g2gnet import G2GNet, G2GNetConfig, SparseLinear
from training.rewiring import rewire, scores
from training.tasks.digits import Digits

CONFIG = G2GNetConfig(hidden_size=32, num_layers=2, num_groups=4, density=0.4)


def made(config: G2GNetConfig = CONFIG) -> G2GNet:
    torch.manual_seed(0)
    return G2GNet(config).eval()


def maps(model: G2GNet) -> list[SparseLinear]:
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


def edges(module: SparseLinear) -> torch.Tensor:
    """Which weights are there [out, in]."""
    found = torch.zeros(module.shape, dtype=torch.bool)
    found.view(-1)[module.places] = True
    return found


def test_three_weights_of_four_are_absent() -> None:
    model = made(G2GNetConfig())
    for module in maps(model):
        assert edges(module).float().mean() == 0.25
        assert (module.dense() == 0).float().mean() == 0.75
    dense = made(G2GNetConfig(density=1.0))
    sizes = [module.shape[0] * module.shape[1] for module in maps(model)]
    assert num_parameters(dense) - num_parameters(model) == 0.75 * sum(sizes)


def test_a_sparse_map_is_the_sum_over_its_edges() -> None:
    torch.manual_seed(0)
    module, hidden = SparseLinear(6, 4, num_groups=2, density=0.6), torch.randn(3, 6)
    wanted = module.bias.expand(3, 4).clone()
    for place, value in zip(module.places.tolist(), module.values, strict=True):
        wanted[:, place // 6] += value * hidden[:, place % 6]
    torch.testing.assert_close(module(hidden), wanted, atol=1e-6, rtol=0)


def test_a_group_hears_its_own_alone() -> None:
    module = SparseLinear(8, 16, num_groups=4, density=0.25)
    own = torch.block_diag(*(torch.ones(4, 2) for _ in range(4))).bool()
    assert torch.equal(edges(module), own)
    denser = SparseLinear(8, 16, num_groups=4, density=0.5)
    assert (edges(denser) >= own).all()
    assert edges(denser).sum() == 64


@pytest.mark.parametrize("regrow", ["hebbian", "random"])
def test_rewiring_keeps_the_number_of_edges(regrow: str) -> None:
    model = made()
    before = [(edges(module), module.dense().detach()) for module in maps(model)]
    rewire(model, Digits().heldout().inputs, 0.2, regrow, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    for module, (old, weights) in zip(maps(model), before, strict=True):
        new, moved = edges(module), round(0.2 * int(old.sum()))
        assert new.sum() == old.sum()
        assert (new & ~old).sum() == (old & ~new).sum() == moved
        assert (module.dense()[new & ~old] == 0).all()
        assert torch.equal(module.dense()[new & old], weights[new & old])
        assert weights[old & ~new].abs().max() <= weights[old & new].abs().min()


def test_hebbian_rewiring_joins_what_fires_together() -> None:
    model, inputs = made(), Digits().heldout().inputs
    wanted = scores(model, inputs, "hebbian", torch.Generator())
    before = {module: edges(module) for module in maps(model)}
    rewire(model, inputs, 0.2, "hebbian", torch.Generator())
    for module, old in before.items():
        came = edges(module) & ~old
        assert wanted[module][came].min() >= wanted[module][~old & ~came].max()


def test_scores_are_correlations_of_activity() -> None:
    model, inputs = made(), Digits().heldout().inputs
    first = maps(model)[0]
    given = model.layers[0].norm(model.embed(inputs))
    both = torch.cat((first(given), given), 1).T
    wanted = torch.corrcoef(both)[: first.shape[0], first.shape[0] :].abs()
    found = scores(model, inputs, "hebbian", torch.Generator())[first]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_a_map_without_absent_edges_stays_as_it_is() -> None:
    model = made(G2GNetConfig(hidden_size=16, num_groups=1, density=1.0, num_layers=1))
    before = [tensor.clone() for tensor in model.state_dict().values()]
    rewire(model, Digits().heldout().inputs, 0.2, "random", torch.Generator().manual_seed(0))
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArtifactError, match="7 groups do not fill 64 neurons; choose"):
        G2GNetConfig(num_groups=7)
    with pytest.raises(ArtifactError, match=r"density of 0.1 is not between 1/8"):
        G2GNetConfig(density=0.1)
