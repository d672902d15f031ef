"""Every recipe of the catalogue for two steps: it repeats itself, and writes what is exported and described."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from models import catalogue
from models.errors import UnknownModelError
from training.card import read_card
from training.cli import train as command
from training.make import make
from training.recipe import Recipe, train
from training.recipes import find_recipe, recipes

NAMES = sorted(recipes())


def few(name: str) -> Recipe:
    return replace(find_recipe(name), steps=2, claims=())


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_weights(name: str) -> None:
    recipe = few(name)
    first, second = (train(recipe, recipe.model, name)[0].state_dict() for _ in range(2))
    other = train(recipe, recipe.model, name, seed=recipe.seed + 1)[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_out_is_never_learned_from(name: str) -> None:
    task, random = find_recipe(name).task, torch.Generator().manual_seed(0)
    held = {row.numpy().tobytes() for row in task.heldout().inputs}
    seen = {row.numpy().tobytes() for _ in range(8) for row in task.batch(64, random).inputs}
    assert not held & seen


def test_recipe_becomes_a_checkpoint_with_a_card(tmp_path: Path) -> None:
    card = make("hourglass", few("hourglass"), tmp_path / "made")
    model = catalogue.load(tmp_path / "made")
    assert type(model).__name__ == card.architecture
    assert read_card(tmp_path / "made") == card
    assert f"| hourglass | {card.model.parameters:,} |" in (tmp_path / "made" / "README.md").read_text()


def test_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownModelError, match=r"no recipe 'nothing'; there are \[.*'hourglass'"):
        find_recipe("nothing")


def test_command_says_how_good_the_model_is_beside_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.recipes.find_recipe", few)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["hourglass", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "hourglass, 54,274 parameters" in result.output
    assert read_card(tmp_path / "hourglass").seed == 3
