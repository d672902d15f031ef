"""Recipes of the KANs and of the polynomial activations."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from models.kan.af_kan import AFKan, AFKanConfig, AFKanStack, AFKanStackConfig
from models.kan.affine import FixedAffine
from models.kan.bases import FAMILIES
from models.kan.polycom import PolyCom, PolyComConfig
from models.kan.polynomials import POLYNOMIALS
from models.kan.s_conv_kan import SConvKan, SConvKanConfig
from models.kan.s_kan import SKan, SKanConfig
from models.kan.selectable import SelectableLayer
from models.mixers.residual_mlp import ResidualMLP, ResidualMLPConfig
from training.kan_baselines import Plain, convolutions, mlp, relu_kan
from training.recipe import Measured, Recipe, score, train
from training.tasks.digits import Digits
from training.tasks.functions import FUNCTIONS, Functions
from training.tasks.score import explained
from training.tasks.tabular import Tabular
from training.tasks.task import Task
from training.tiny_decoder import heldout_loss

# Parts of the steps after which S-KAN begins to choose, and after which it has chosen.
_FULL, _SELECTED = 0.2, 0.4
# The temperature at which all families are mixed, and the one before a choice is made.
_WARM, _COLD = 1.0, 0.1


def to_zero_one(units: FixedAffine) -> None:
    """Pixels of 0 to 16 to 0..1, where the phases of AF-KAN and ReLU-KAN lie."""
    units.set(1 / 16, 0.0)


def standard(units: FixedAffine, table: Tabular, spread: float = 1.0, centre: float = 0.0) -> None:
    """The features of a table to a mean of `centre` and a standard deviation of `spread`."""
    mean, deviation = table.units
    units.set(spread / deviation, centre - spread * mean / deviation)


def _better(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    ours, theirs = score(model, task), score(baseline, task)
    return ours > theirs, f"{ours:.1f} against {theirs:.1f}"


def _against(
    others: dict[str, Callable[[], nn.Module]], recipe: str, allowed: float
) -> Callable[..., tuple[bool, str]]:
    """Whether a model is better than each of some others, trained as it was, or behind by no more than `allowed`."""

    def judge(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
        ours = score(model, task)
        theirs = {name: score(train(RECIPES[recipe], build, name)[0], task) for name, build in others.items()}
        said = ", ".join(f"{score:.1f} of {name}" for name, score in theirs.items())
        return all(ours > one - allowed for one in theirs.values()), f"{ours:.1f} against {said}"

    return judge


def _wins_most_fits(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    """On how many functions the selected KAN is nearer than the KAN of each family alone."""
    recipe, ours = RECIPES["s-kan"], _unexplained(model, task)
    singles = {name: train(recipe, partial(_s_kan, name), name)[0] for name in FAMILIES if name != "bspline"}
    errors = {"bspline": _unexplained(baseline, task), **{n: _unexplained(m, task) for n, m in singles.items()}}
    wins = {name: int((ours < error).sum()) for name, error in errors.items()}
    best = int((ours < torch.stack(list(errors.values())).amin(dim=0)).sum())
    said = ", ".join(f"{count} against {name}" for name, count in wins.items())
    return 2 * min(wins.values()) > len(
        FUNCTIONS
    ), f"of 7 functions nearer on {said}; on {best} against the best of all"


def _unexplained(model: nn.Module, task: Task) -> torch.Tensor:
    held = task.heldout()
    with torch.inference_mode():
        return 1 - explained(model(held.inputs), held.targets)


def _beats_gelu_in_a_decoder(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
    losses = {name: heldout_loss(name) for name in ("gelu", *POLYNOMIALS)}
    return losses["poly_norm"] < losses["gelu"], ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())


def select(model: nn.Module, done: float) -> None:
    """The three stages of S-KAN: all families, a choice that gets sharper, and the chosen alone."""
    if done < _FULL:
        temperature = _WARM
    elif done < _SELECTED:
        temperature = _WARM * (_COLD / _WARM) ** ((done - _FULL) / (_SELECTED - _FULL))
    else:
        temperature = 0.0
    for layer in model.modules():
        if isinstance(layer, SelectableLayer):
            layer.temperature = temperature


def harden(model: nn.Module) -> None:
    """What is left of a soft S-KAN once it has chosen."""
    if isinstance(model, SKan | SConvKan):
        model.harden()


def _af_kan() -> AFKan:
    model = AFKan(AFKanConfig())
    to_zero_one(model.units)
    return model


def _af_kan_stack() -> AFKanStack:
    model = AFKanStack(AFKanStackConfig())
    to_zero_one(model.units)
    return model


def _af_kan_wine() -> AFKan:
    model = AFKan(AFKanConfig(num_features=13, num_classes=3, widths=(16,)))
    standard(model.units, Tabular("wine"), 1 / 4, 1 / 2)
    return model


def _s_kan(family: str | None = None) -> SKan:
    """Soft, or of one family from the start."""
    model = SKan(SKanConfig(is_hard=family is not None))
    for layer in model.steps:
        if family is not None and isinstance(layer, SelectableLayer):
            layer.choose(family)
    return model


def _s_kan_diabetes() -> SKan:
    table = Tabular("diabetes")
    model = SKan(SKanConfig(10, 1, (3,), 4, is_hard=False))
    standard(model.units, table, 1 / 2)
    mean, deviation = table.answer_units
    model.answer_units.set(float(deviation), float(mean))
    return model


def _mlp_diabetes() -> Plain:
    table = Tabular("diabetes")
    units, answers = FixedAffine(10), FixedAffine(1)
    standard(units, table)
    mean, deviation = table.answer_units
    answers.set(float(deviation), float(mean))
    return Plain(units, mlp(10, 14, 1), answers)


def _s_conv_kan() -> SConvKan:
    model = SConvKan(SConvKanConfig(is_hard=False))
    model.units.set(1 / 8, -1.0)
    return model


def _polycom() -> PolyCom:
    model = PolyCom(PolyComConfig())
    model.units.set(1 / 8, -1.0)
    return model


def _polycom_cancer() -> PolyCom:
    model = PolyCom(PolyComConfig(30, 2, 12, 2, 4, "poly_relu"))
    standard(model.units, Tabular("breast_cancer"))
    return model


def _of_pixels(network: nn.Module, scale: float = 1 / 16, shift: float = 0.0) -> Plain:
    units = FixedAffine(1)
    units.set(scale, shift)
    return Plain(units, network)


def _of_table(table: Tabular, network: nn.Module, size: int) -> Plain:
    units = FixedAffine(size)
    standard(units, table)
    return Plain(units, network)


RECIPES = {
    "af-kan": Recipe(
        model=_af_kan,
        baseline=lambda: _of_pixels(mlp(64, 64, 10), 1 / 8, -1.0),
        baseline_name="MLP, 64 - 64 - 10",
        task=Digits(),
        steps=2000,
        learning_rate=3e-3,
        claims=(
            Measured("better than an MLP with as many weights", _better),
            Measured(
                "better than ReLU-KAN with as many weights",
                _against({"ReLU-KAN, 64 - 11 - 10": lambda: _of_pixels(relu_kan(64, 11, 10))}, "af-kan", 0.0),
            ),
            Measured(
                "within a point of ReLU-KAN of the same widths, which has 6 times the weights",
                _against({"ReLU-KAN, 64 - 64 - 10": lambda: _of_pixels(relu_kan(64, 64, 10))}, "af-kan", 1.0),
            ),
        ),
    ),
    "af-kan-stack": Recipe(
        model=_af_kan_stack,
        baseline=lambda: ResidualMLP(ResidualMLPConfig(hidden_size=30, expansion=1, num_layers=4)),
        baseline_name="residual MLP, 30 wide, 4 layers",
        task=Digits(),
        steps=1500,
        learning_rate=3e-3,
        claims=(Measured("better than a residual MLP with as many weights", _better),),
    ),
    "af-kan-wine": Recipe(
        model=_af_kan_wine,
        baseline=lambda: _of_table(Tabular("wine"), mlp(13, 20, 3), 13),
        baseline_name="MLP, 13 - 20 - 3",
        task=Tabular("wine"),
        steps=1000,
        learning_rate=1e-2,
        claims=(Measured("better than an MLP with as many weights", _better),),
    ),
    "s-kan": Recipe(
        model=_s_kan,
        baseline=lambda: _s_kan("bspline"),
        baseline_name="KAN of B-splines alone",
        task=Functions(),
        steps=3000,
        batch_size=256,
        learning_rate=1e-2,
        weight_decay=0.0,
        on_step=select,
        finish=harden,
        claims=(Measured("nearer than a KAN of one family on most of seven functions", _wins_most_fits),),
    ),
    "s-kan-diabetes": Recipe(
        model=_s_kan_diabetes,
        baseline=_mlp_diabetes,
        baseline_name="MLP, 10 - 14 - 1",
        task=Tabular("diabetes"),
        steps=500,
        learning_rate=3e-3,
        weight_decay=1.0,
        on_step=select,
        finish=harden,
        claims=(Measured("better than an MLP with as many weights", _better),),
    ),
    "s-conv-kan": Recipe(
        model=_s_conv_kan,
        baseline=lambda: _of_pixels(convolutions(1, 22, 46, places=4, num_classes=10), 1 / 8, -1.0),
        baseline_name="CNN, 22 and 46 channels",
        task=Digits("image"),
        steps=1500,
        learning_rate=3e-3,
        on_step=select,
        finish=harden,
        claims=(Measured("better than convolutions with as many weights", _better),),
    ),
    "polycom": Recipe(
        model=_polycom,
        baseline=lambda: ResidualMLP(ResidualMLPConfig(hidden_size=40, num_layers=6)),
        baseline_name="GELU in the same place",
        task=Digits(),
        steps=1200,
        claims=(
            Measured("better than GELU in the same place", _better),
            Measured("PolyNorm instead of GELU lowers the loss of a small decoder", _beats_gelu_in_a_decoder),
        ),
    ),
    "polycom-cancer": Recipe(
        model=_polycom_cancer,
        baseline=lambda: _of_table(
            Tabular("breast_cancer"),
            ResidualMLP(ResidualMLPConfig(30, 2, hidden_size=12, num_layers=4, input_shift=0.0, input_scale=1.0)),
            30,
        ),
        baseline_name="GELU in the same place",
        task=Tabular("breast_cancer"),
        steps=600,
        claims=(Measured("better than GELU in the same place", _better),),
    ),
}
