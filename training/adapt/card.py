"""The card of an adapted checkpoint: how often it is right before, after conversion, and after training. Text only."""

from dataclasses import dataclass

from models.layered import num_parameters
from models.lm.model import LanguageModel
from training.arith.card import Cells, mean, rows
from training.arith.problems import FAMILIES, LEVELS
from training.arith.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Measured:
    """Shares of right answers by family and level."""

    standard: Cells
    converted: Cells
    trained: Cells


def card(
    name: str, model: LanguageModel, recipe: Recipe, tokens: int, seconds: float, measured: Measured, per_cell: int
) -> str:
    """The text of README.md."""
    stages = {
        "standard, as it was trained": measured.standard,
        f"the same weights as {model.residual_form}": measured.converted,
        f"trained on as {model.residual_form}": measured.trained,
    }
    return CARD.format(
        form=model.residual_form,
        command=f"python -m training.adapt {name} --steps {recipe.steps} --seed {recipe.seed}",
        parameters=num_parameters(model),
        per_cell=per_cell,
        error=50 / per_cell**0.5,
        families=" | ".join(FAMILIES),
        stages="\n".join(_stage(stage, cells) for stage, cells in stages.items()),
        trained=rows(measured.trained),
        recipe=recipe,
        samples=recipe.steps * recipe.batch_size,
        tokens=tokens,
        minutes=seconds / 60,
        paper=PAPER,
    )


def _stage(stage: str, cells: Cells) -> str:
    """Per cent of each family over its levels, then of all."""
    families = (100 * sum(cells[family, level] for level in LEVELS) / len(LEVELS) for family in FAMILIES)
    return f"| {stage} | {' | '.join(f'{value:.1f}' for value in families)} | {mean(cells):.1f} |"


# arXiv 2501.06589, section 4.
PAPER = """\
| Llama-3.1-8B | MMLU | ARC-C | OBQA | HellaSwag | TruthfulQA | GSM8K | HumanEval+ | IFEval | AlpacaEval | mean |
|---|---|---|---|---|---|---|---|---|---|---|
| standard | 68.14 | 60.32 | 43.00 | 80.04 | 36.84 | 84.99 | 60.40 | 52.57 | 18.69 | 56.11 |
| ladder:16-31, not trained | 63.19 | 56.57 | 42.60 | 77.70 | 35.50 | 10.54 | 30.50 | 46.25 | 11.99 | 41.65 |
| ladder:16-31, trained | 65.93 | 59.13 | 42.20 | 78.86 | 39.66 | 80.29 | 59.10 | 59.02 | 21.95 | 56.24 |
| ladder:12-31, trained | 62.31 | 59.90 | 42.60 | 77.49 | 36.72 | 76.19 | 48.80 | 59.05 | 21.72 | 53.86 |"""

CARD = """# arith in the residual form {form}

The arithmetic model `arith`, converted from the standard residual form and trained on. Problems, tokens, levels and
weak points are those of its card. Licence: Apache-2.0.

| | |
|---|---|
| residual form | {form} |
| size | {parameters:,} parameters, float32 |
| command | `{command}` |

## Accuracy of the full chain

Exact match of the whole answer and the end token, greedy, in per cent; {per_cell} held-out problems of each of five
levels (standard error of a cell up to {error:.1f} points).

| weights and form | {families} | mean |
|---|---|---|---|---|---|---|
{stages}

By level, after training:

| family | L1 | L2 | L3 | L4 | L5 |
|---|---|---|---|---|---|
{trained}

Beside it what the paper (arXiv 2501.06589) tells of an instruct model, trained on 3 billion tokens; its standard form
was not trained on these:

{paper}

## Training

{recipe.steps:,} steps of {recipe.batch_size} samples ({samples:,} samples, {tokens:,} tokens), {minutes:.0f} minutes
with one process on a CPU core shared with other work. Muon {recipe.muon_lr} on the matrices of the layers, AdamW
{recipe.adamw_lr} on the rest, a quarter of the rates `arith` was trained with; {recipe.warmup} steps of warm-up, then
falling linearly to {recipe.final_rate:.0%}. The mixture of `training.arith` with all sizes, in another order. Rates and
steps were chosen once; one seed, one run.
"""
