"""Recipes of the mixers and MLPs."""

from torch import nn

from models.mixers.hourglass import Hourglass, HourglassConfig
from models.mixers.residual_mlp import ResidualMLP, ResidualMLPConfig
from training.recipe import Measured, Recipe, score
from training.tasks.digits import Digits
from training.tasks.task import Task


def _is_as_good(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    ours, theirs = score(model, task), score(baseline, task)
    return ours >= theirs, f"{ours:.1f} against {theirs:.1f}"


RECIPES = {
    "hourglass": Recipe(
        model=lambda: Hourglass(HourglassConfig()),
        baseline=lambda: ResidualMLP(ResidualMLPConfig(hidden_size=64, expansion=3, num_layers=2)),
        baseline_name="narrow - wide - narrow MLP, 64 - 192 - 64, 2 layers",
        task=Digits(),
        steps=2000,
        claims=(Measured("at least as good as narrow - wide - narrow with as many weights", _is_as_good),),
    ),
}
