"""The shipped checkpoints: complete, small, and as right as their cards say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import catalogue
from models.lm import weights
from training import digits
from training.arith.accuracy import is_right
from training.arith.problems import FAMILIES, LEVELS, Problem, is_heldout
from training.tasks.digits import split
from training.tasks.task import Examples

CHECKPOINTS = Path(__file__).parents[2] / "models" / "checkpoints"
ARITH, DIGITS = CHECKPOINTS / "arith", CHECKPOINTS / "digits"
CARD_MARGIN = 0.5  # Points by which another machine's rounding may move the accuracy on the shipped problems.
SAMPLE_MARGIN = 15.0  # Points for 100 problems: three standard errors at 50 %.


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def per_cent_right(problems: list[Problem]) -> float:
    model = weights.load(ARITH)
    return (
        100 * sum(sum(is_right(model, problems[at : at + 250])) for at in range(0, len(problems), 250)) / len(problems)
    )


def card_mean(pattern: str) -> float:
    match = re.search(pattern, (ARITH / "README.md").read_text().replace("\n", " "))
    assert match is not None
    return float(match[1])


def test_weights_stay_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINTS.glob("*/model.safetensors")) < 20_000_000


def test_arith_heldout_problems_are_held_out_and_cover_every_cell() -> None:
    problems = lines(ARITH / "heldout.jsonl")
    assert len(problems) >= 1_000
    assert all(is_heldout(problem["prompt"]) for problem in problems)
    cells = [(problem["family"], problem["level"]) for problem in problems]
    assert {cells.count((family, level)) for family in FAMILIES for level in LEVELS} == {50}


def test_arith_is_as_right_as_its_card_says_on_the_shipped_problems() -> None:
    problems = [Problem(line["prompt"], line["target"]) for line in lines(ARITH / "heldout.jsonl")]
    assert per_cent_right(problems) == pytest.approx(card_mean(r"on these alone \(mean ([\d.]+)\)"), abs=CARD_MARGIN)


def test_arith_sample_is_as_right_as_its_card_says_in_general() -> None:
    problems = [Problem(line["prompt"], line["target"]) for line in lines(ARITH / "heldout.jsonl")[::12][:100]]
    assert per_cent_right(problems) == pytest.approx(card_mean(r"; mean ([\d.]+)\."), abs=SAMPLE_MARGIN)


def test_arith_loads_with_transformers_and_generates_the_same() -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(ARITH), AutoModelForCausalLM.from_pretrained(ARITH)
    problems = [Problem(line["prompt"], line["target"]) for line in lines(ARITH / "heldout.jsonl")[::125]]
    for problem, right in zip(problems, is_right(weights.load(ARITH), problems), strict=True):
        ids = tokenizer(problem.prompt, return_tensors="pt")
        written = model.generate(**ids)[0, ids.input_ids.shape[1] :]
        assert (tokenizer.decode(written) == problem.target + "$") is right


def test_arith_heldout_problems_survive_the_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(ARITH / "tokenizer.json"))
    for line in lines(ARITH / "heldout.jsonl"):
        assert tokenizer.decode(tokenizer.encode(line["prompt"]).ids) == line["prompt"]


def test_digits_is_as_right_as_its_card_says() -> None:
    test = lines(DIGITS / "heldout.jsonl")
    rows = Examples(torch.tensor([line["inputs"] for line in test]), torch.tensor([line["target"] for line in test]))
    match = re.search(r"\| 360 \| (\d+) ", (DIGITS / "README.md").read_text())
    assert match is not None
    assert round(digits.accuracy(catalogue.load(DIGITS), rows) * 360) == int(match[1]) >= 0.97 * 360


def test_digits_heldout_rows_are_the_test_split() -> None:
    test = lines(DIGITS / "heldout.jsonl")
    training, heldout = split()
    assert [line["inputs"] for line in test] == heldout.inputs.tolist()
    assert [line["target"] for line in test] == heldout.targets.tolist()
    assert not set(map(tuple, heldout.inputs.tolist())) & set(map(tuple, training.inputs.tolist()))
