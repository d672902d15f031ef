"""Exact match of a language model on problems: the whole answer and the end token, greedily."""

from collections.abc import Sequence
from random import Random

import torch

from models.lm.model import LanguageModel
from training.arith.batches import collate
from training.arith.problems import FAMILIES, LEVELS, Problem, sample_level

Cell = tuple[str, int]


def heldout_cells(per_cell: int, seed: int) -> dict[Cell, list[Problem]]:
    """Held-out problems of every family and level. The first problems stay the same when `per_cell` grows."""
    rngs = {(family, level): Random(f"heldout/{seed}/{family}/{level}") for family in FAMILIES for level in LEVELS}
    return {cell: [sample_level(*cell, rng, heldout=True) for _ in range(per_cell)] for cell, rng in rngs.items()}


def is_right(model: LanguageModel, problems: Sequence[Problem]) -> list[bool]:
    """Which problems the full chain answers. One pass over the right answers says the same as greedy decoding."""
    batch = collate(problems)
    answers = batch.weights == 1  # [B, S - 1]
    with torch.inference_mode():
        best = model(batch.token_ids[:, :-1]).argmax(-1)  # [B, S - 1]
    wrong = (best != batch.token_ids[:, 1:]) & answers
    return [not row for row in wrong.any(1).tolist()]


def accuracy(model: LanguageModel, cells: dict[Cell, list[Problem]]) -> dict[Cell, float]:
    """Share of right answers in each cell."""
    return {cell: sum(is_right(model, problems)) / len(problems) for cell, problems in cells.items()}
