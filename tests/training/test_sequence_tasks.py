"""Tasks of sequences: targets are what plain Python says of the inputs."""

import pytest
import torch
from torch.nn import functional as F

from training.tasks.copying import Copying
from training.tasks.counting import Counting
from training.tasks.recall import Recall


@pytest.mark.parametrize("modulus", [2, 3])
def test_sums_are_those_of_every_prefix(modulus: int) -> None:
    task = Counting(modulus, length=7, times=6)
    examples = task.batch(5, torch.Generator().manual_seed(0))
    assert examples.inputs.shape == examples.targets.shape == (5, 7)
    for symbols, sums in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        assert sums == [sum(symbols[: t + 1]) % modulus for t in range(7)]


def test_sums_are_scored_where_no_trained_string_reaches() -> None:
    task = Counting(2, length=7, times=6)
    held = task.heldout()
    assert held.inputs.shape[1] == 42
    outputs = F.one_hot(held.targets, 2).float()
    outputs[:, :35] = outputs[:, :35].flip(-1)  # wrong everywhere but in the last sixth
    assert task.score(outputs, held.targets) == 100
    outputs[:, 35:] = outputs[:, 35:].flip(-1)
    assert task.score(outputs, held.targets) == 0


def test_asked_keys_have_the_values_they_were_read_with() -> None:
    task = Recall(num_keys=6, num_values=4, num_pairs=3)
    examples = task.batch(20, torch.Generator().manual_seed(0))
    assert examples.inputs.shape == (20, 9)
    for tokens, values in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        said = {tokens[2 * i]: tokens[2 * i + 1] - 6 for i in range(3)}
        assert len(said) == 3
        assert sorted(tokens[6:]) == sorted(said)
        assert [said[key] for key in tokens[6:]] == values


def test_blanks_are_answered_with_the_symbols_in_order() -> None:
    task = Copying(num_symbols=4, length=3)
    examples = task.batch(20, torch.Generator().manual_seed(0))
    assert torch.equal(examples.inputs[:, :3], examples.targets)
    assert (examples.inputs[:, 3:] == 4).all()
    outputs = F.one_hot(examples.targets, 4).float()
    assert task.score(torch.cat((torch.zeros(20, 3, 4), outputs), dim=1), examples.targets) == 100


def test_held_out_sequences_are_always_the_same() -> None:
    for task in (Counting(), Recall(), Copying()):
        assert torch.equal(task.heldout().inputs, task.heldout().inputs)
