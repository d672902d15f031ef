"""Recipes of the mixers and MLPs."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from models.mixers.g2gnet import G2GNet, G2GNetConfig
from models.mixers.hourglass import Hourglass, HourglassConfig
from models.mixers.mlp_mixer import MLPMixer, MLPMixerConfig
from models.mixers.ninformer import NiNformer, NiNformerConfig
from models.mixers.quadratic import Conventional, Quadratic, QuadraticConfig, quadratic_parameters
from models.mixers.raft_mlp import RaftMLP, RaftMLPConfig
from models.mixers.residual_mlp import ResidualMLP, ResidualMLPConfig
from models.mixers.scaling_mlp import PlainMLP, ScalingMLP, ScalingMLPConfig
from models.mixers.strip_mlp import StripMLP, StripMLPConfig
from training.recipe import Measured, Recipe, score, train
from training.rewiring import Regrow, rewire
from training.tasks.digits import Digits
from training.tasks.rings import Rings
from training.tasks.task import Task

_SPARSE_STEPS, _REWIRE_EVERY, _REWIRED_PART = 2000, 100, 0.1
# The learning rate on the rings, and the part of it that gates and squares of quadratic neurons have.
_RINGS_RATE, _QUADRATIC_PART = 1e-2, 0.1


def _is_as_good(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    return _at_least(score(model, task), score(baseline, task))


def _at_least(ours: float, theirs: float) -> tuple[bool, str]:
    return ours >= theirs, f"{ours:.1f} against {theirs:.1f}"


def _reads_larger_images(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    assert isinstance(model, RaftMLP)
    held = task.heldout()
    larger = F.interpolate(held.inputs, (12, 12), mode="bicubic", align_corners=False)
    with torch.inference_mode():
        there = task.score(model.resized(12)(larger), held.targets)
    before = score(model, task)
    return there >= before - 5, f"{there:.1f} at 12x12 pixels, {before:.1f} at 8x8"


def _rises_with_width(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    widths = (8, 16, 32)
    built = (lambda w=width: ScalingMLP(ScalingMLPConfig(hidden_size=w)) for width in widths)
    scores = [score(train(RECIPES["scaling-mlp"], build, "narrower")[0], task) for build in built]
    scores.append(score(model, task))
    text = ", ".join(f"{value:.1f} of {width}" for value, width in zip(scores, (*widths, 48), strict=True))
    return scores == sorted(scores), f"{text} wide"


def _is_as_good_as_dense(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    dense, _ = train(RECIPES["g2gnet"], lambda: G2GNet(G2GNetConfig(density=1.0)), "dense")
    return _at_least(score(model, task), score(dense, task))


def _hebbian_is_as_good_as_random(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    recipe = replace(RECIPES["g2gnet"], on_step=lambda model, done: _rewire(model, done, "random"))
    other, _ = train(recipe, recipe.model, "regrown at random")
    return _at_least(score(model, task), score(other, task))


def _rewire(model: nn.Module, done: float, regrow: Regrow) -> None:
    """Every so often, until three quarters of the steps are done; then the edges stay and their weights settle."""
    step = round(done * _SPARSE_STEPS)
    if step % _REWIRE_EVERY or done > 0.75:
        return
    random = torch.Generator().manual_seed(step)
    rewire(model, Digits().batch(512, random).inputs, _REWIRED_PART, regrow, random)


def _relinear(model: nn.Module) -> torch.optim.Optimizer:
    """ReLinear by shrunken gradients: quadratic parameters learn more slowly than the others."""
    slow = list(quadratic_parameters(model))
    fast = [parameter for parameter in model.parameters() if all(parameter is not other for other in slow)]
    optimizer = torch.optim.AdamW(fast, lr=_RINGS_RATE, weight_decay=0.0)
    if slow:
        optimizer.add_param_group({"params": slow, "lr": _RINGS_RATE * _QUADRATIC_PART})
    return optimizer


RECIPES = {
    "hourglass": Recipe(
        model=lambda: Hourglass(HourglassConfig()),
        baseline=lambda: ResidualMLP(ResidualMLPConfig(hidden_size=64, expansion=3, num_layers=2)),
        baseline_name="narrow - wide - narrow MLP, 64 - 192 - 64, 2 layers",
        task=Digits(),
        steps=2000,
        claims=(Measured("at least as good as narrow - wide - narrow with as many weights", _is_as_good),),
    ),
    "raft-mlp": Recipe(
        model=lambda: RaftMLP(RaftMLPConfig()),
        baseline=lambda: MLPMixer(MLPMixerConfig(token_size=48, channel_size=106)),
        baseline_name="MLP-Mixer of the same width, 48 units for tokens",
        task=Digits("image"),
        steps=600,
        learning_rate=3e-3,
        claims=(
            Measured("at least as good as a Mixer with as many weights", _is_as_good),
            Measured("with resized weights, at most 5 points less on larger images", _reads_larger_images),
        ),
    ),
    "strip-mlp": Recipe(
        model=lambda: StripMLP(StripMLPConfig()),
        baseline=lambda: MLPMixer(MLPMixerConfig(token_size=48, channel_size=101)),
        baseline_name="MLP-Mixer, 3 layers",
        task=Digits("image"),
        steps=500,
        learning_rate=3e-3,
        claims=(Measured("on a map of 4x4 tokens better than a Mixer with as many weights", _is_as_good),),
    ),
    "scaling-mlp": Recipe(
        model=lambda: ScalingMLP(ScalingMLPConfig()),
        baseline=lambda: PlainMLP(ScalingMLPConfig(hidden_size=96, num_layers=6)),
        baseline_name="plain MLP, 96 wide, 6 layers",
        task=Digits(),
        steps=1500,
        claims=(
            Measured("at least as good as a plain MLP with as many weights", _is_as_good),
            Measured("the wider the better", _rises_with_width),
        ),
    ),
    "ninformer": Recipe(
        model=lambda: NiNformer(NiNformerConfig()),
        baseline=lambda: MLPMixer(MLPMixerConfig(token_size=48, channel_size=115)),
        baseline_name="MLP-Mixer",
        task=Digits("image"),
        steps=600,
        learning_rate=3e-3,
        claims=(Measured("at least as good as a Mixer with as many weights", _is_as_good),),
    ),
    "g2gnet": Recipe(
        model=lambda: G2GNet(G2GNetConfig()),
        baseline=lambda: G2GNet(G2GNetConfig(hidden_size=36, num_groups=1, density=1.0)),
        baseline_name="the same network, dense and 36 wide: as many weights as are there",
        task=Digits(),
        steps=_SPARSE_STEPS,
        on_step=lambda model, done: _rewire(model, done, "hebbian"),
        claims=(
            Measured("at least as good as dense with as many weights", _is_as_good),
            Measured("with a quarter of its weights at least as good as dense of the same width", _is_as_good_as_dense),
            Measured("Hebbian regrowth at least as good as regrowth at random", _hebbian_is_as_good_as_random),
        ),
    ),
    "quadratic": Recipe(
        model=lambda: Quadratic(QuadraticConfig()),
        baseline=lambda: Conventional(QuadraticConfig(hidden_size=7)),
        baseline_name="the same network of conventional neurons, 7 instead of 4 a layer",
        task=Rings(),
        steps=2000,
        optimizer=_relinear,
        claims=(Measured("better than conventional neurons with as many weights, in fewer units", _is_as_good),),
    ),
}
