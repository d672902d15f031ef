"""How one checkpoint of the catalogue is made: a model, a baseline of equal budget, a task, and the steps of both."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

import torch
from rich.progress import track
from torch import nn

from models.layered import LayeredModel
from training.tasks.task import Task

# What a recipe found: the trained model, the trained baseline, and the task they were trained for.
Judge: TypeAlias = Callable[[nn.Module, nn.Module, Task], tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Measured:
    """A claim of a paper about what training gives: whether it held here, and the figures that say so."""

    text: str
    judge: Judge


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights.

    baseline_name: what the baseline is, in words. optimizer: from a module; AdamW at `learning_rate` where it is None.
    on_step: called after every step with the model and the part of the steps that are done, 0 to 1. finish: called once
    after the last.
    """

    model: Callable[[], LayeredModel]
    baseline: Callable[[], nn.Module]
    baseline_name: str
    task: Task
    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    on_step: Callable[[nn.Module, float], None] | None = None
    finish: Callable[[nn.Module], None] | None = None
    claims: tuple[Measured, ...] = ()


def train(
    recipe: Recipe, build: Callable[[], nn.Module], title: str, seed: int | None = None
) -> tuple[nn.Module, float]:
    """A model after the recipe's steps, ready for inference, and the seconds they took. One cosine down to zero."""
    seed = recipe.seed if seed is None else seed
    torch.manual_seed(seed)
    model, random = build(), torch.Generator().manual_seed(seed)
    optimizer = recipe.optimizer(model) if recipe.optimizer else _adamw(recipe, model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    started = monotonic()
    model.train()
    for step in track(range(recipe.steps), description=title):
        examples = recipe.task.batch(recipe.batch_size, random)
        optimizer.zero_grad()
        recipe.task.loss(model(examples.inputs), examples.targets).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if recipe.on_step:
            recipe.on_step(model, (step + 1) / recipe.steps)
    if recipe.finish:
        recipe.finish(model)
    return model.eval(), monotonic() - started


def score(model: nn.Module, task: Task) -> float:
    """The task's score of a model on what is held out, in per cent."""
    held = task.heldout()
    with torch.inference_mode():
        return task.score(model(held.inputs), held.targets)


def _adamw(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
