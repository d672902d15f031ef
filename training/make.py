"""A recipe to a checkpoint directory: model and baseline trained, claims judged, weights and card written."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from models import catalogue
from models.layered import LayeredModel, num_parameters
from training.card import Card, Judged, Trained
from training.recipe import Recipe, score, train


def make(name: str, recipe: Recipe, out: Path, seed: int | None = None) -> Card:
    """Carry a recipe out on one thread and write what comes of it; returns the card."""
    torch.set_num_threads(1)
    model, seconds = train(recipe, recipe.model, name, seed)
    baseline, _ = train(recipe, recipe.baseline, recipe.baseline_name, seed)
    about = cast("catalogue.Architecture", model).about
    card = Card(
        architecture=type(model).__name__,
        row=about.row,
        title=about.title,
        paper=about.paper,
        seed=recipe.seed if seed is None else seed,
        steps=recipe.steps,
        data=recipe.task.data,
        metric=recipe.task.metric,
        model=_trained(name, model, recipe),
        baseline=_trained(recipe.baseline_name, baseline, recipe),
        seconds=round(seconds, 1),
        claims=judged(recipe, model, baseline),
    )
    catalogue.save(cast("LayeredModel", model), out)
    card.write(out)
    return card


def judged(recipe: Recipe, model: nn.Module, baseline: nn.Module) -> tuple[Judged, ...]:
    """What became of the recipe's claims."""
    found = ((claim.text, *claim.judge(model, baseline, recipe.task)) for claim in recipe.claims)
    return tuple(Judged(text=text, held=held, figures=figures) for text, held, figures in found)


def _trained(name: str, model: nn.Module, recipe: Recipe) -> Trained:
    return Trained(name=name, parameters=num_parameters(model), score=round(score(model, recipe.task), 2))
