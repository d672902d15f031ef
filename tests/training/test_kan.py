"""What KANs are trained on, and the stages of S-KAN's selection."""

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Generator

from models.kan.affine import FixedAffine
from models.kan.s_kan import SKan, SKanConfig
from models.kan.selectable import SelectableLayer
from training.kan import harden, select, standard
from training.kan_baselines import ReLUKanLayer
from training.tasks.functions import FUNCTIONS, Functions
from training.tasks.score import explained
from training.tasks.tabular import Table, Tabular


@pytest.mark.parametrize("table", ["wine", "breast_cancer", "diabetes"])
def test_rows_held_out_are_in_no_batch_and_units_are_of_the_others(table: Table) -> None:
    task = Tabular(table)
    learned, held = task.batch(20_000, Generator().manual_seed(0)).inputs, task.heldout().inputs
    assert not {tuple(row) for row in learned.unique(dim=0).tolist()} & {tuple(row) for row in held.tolist()}
    units = FixedAffine(held.shape[1])
    standard(units, task, 0.25, 0.5)
    assert torch.allclose(units(learned).mean(dim=0), torch.full(held.shape[1:], 0.5), atol=0.02)
    assert torch.allclose(units(learned).std(dim=0), torch.full(held.shape[1:], 0.25), atol=0.02)


def test_explained_variance_is_sklearns() -> None:
    held = Tabular("diabetes").heldout()
    guess = held.targets * 0.5 + held.inputs[:, :1]
    assert float(explained(guess, held.targets)) == pytest.approx(r2_score(held.targets, guess), abs=1e-5)
    assert Tabular("diabetes").score(held.targets, held.targets) == 100


def test_functions_are_about_as_large_as_each_other_and_nothing_held_out_is_learned() -> None:
    task = Functions()
    spread = task.heldout().targets.std(dim=0)
    assert len(spread) == len(FUNCTIONS) == 7
    assert 0.1 < spread.min() < spread.max() < 1.0
    assert task.loss(task.heldout().targets, task.heldout().targets) == 0
    assert not torch.equal(task.batch(2000, Generator().manual_seed(0)).inputs, task.heldout().inputs)


def test_selection_is_open_then_sharper_then_made() -> None:
    model = SKan(SKanConfig(widths=(3,), is_hard=False))
    layer = next(one for one in model.modules() if isinstance(one, SelectableLayer))
    layer.preferences.data[0] = torch.tensor([0.1, 0.0, 0.3, 0.2])
    largest = []
    for done in (0.0, 0.1, 0.25, 0.35, 0.5, 1.0):
        select(model, done)
        largest.append(float(layer.shares()[0].detach().max()))
    assert largest[0] == largest[1] < 0.4  # all families
    assert largest[1] < largest[2] < largest[3] < 1.0
    assert largest[4] == largest[5] == 1.0
    harden(model)
    assert layer.chosen[0].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_functions_of_relu_kan_reach_one() -> None:
    layer = ReLUKanLayer(1, 1)
    read = []
    layer.linear.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    layer(torch.linspace(-2, 2, 2401)[:, None])
    assert torch.allclose(read[0].amax(dim=0), torch.ones(6), atol=1e-4)
    assert (read[0] >= 0).all()
