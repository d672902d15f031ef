"""Generated problems: right answers, large answer spaces, held-out prompts apart from trained ones."""

import re
from random import Random

import pytest

from training.arith.batches import Mixture
from training.arith.problems import FAMILIES, FAMILY, LEVELS, Problem, is_heldout, sample, sample_level

CELLS = [(family, level) for family in FAMILIES for level in LEVELS]


def recomputed(problem: Problem) -> str:
    """The answer, found another way than the generator's."""
    text = problem.prompt.removesuffix("=")
    if text.startswith("s"):
        return "".join(digit * text.count(digit) for digit in "0123456789")
    if re.fullmatch(r"\d+[+-]\d+", text):
        return str(sum(int(number) for number in re.findall(r"[+-]?\d+", text)))
    return ",".join(intermediate_values(text))


def intermediate_values(text: str) -> list[str]:
    """Products and running totals of an expression, each computed from the text that ends there."""
    values = []
    ends = [match.end() for match in re.finditer(r"\d+(?:\*\d+)?", text)]
    for place, end in enumerate(ends):
        term = re.split(r"[+-]", text[:end])[-1]
        if "*" in term:
            left, right = term.split("*")
            values.append(str(int(left) * int(right)))
        if place:
            values.append(str(eval(text[:end])))
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_right(family: str) -> None:
    rng = Random(1)
    for size in FAMILY[family].sizes:
        for _ in range(100):
            problem = sample(family, size, rng, heldout=False)
            assert problem.target == recomputed(problem)


@pytest.mark.parametrize(("family", "level"), CELLS)
def test_answer_space_has_ten_thousand_answers(family: str, level: int) -> None:
    rng = Random(2)
    make, size = FAMILY[family].make, FAMILY[family].level_sizes[level - 1]
    answers: set[str] = set()
    for _ in range(150_000):
        answers.add(make(size, rng).target)
        if len(answers) >= 10_000:
            return
    raise AssertionError(f"only {len(answers)} answers in 150,000 problems")


@pytest.mark.parametrize(("family", "level"), CELLS)
def test_no_answer_is_common(family: str, level: int) -> None:
    rng = Random(3)
    answers = [sample_level(family, level, rng, heldout=True).target for _ in range(500)]
    assert max(map(answers.count, answers)) <= 5


@pytest.mark.parametrize("family", ["add", "sub", "sum3"])
def test_operands_of_levels_have_three_to_six_digits(family: str) -> None:
    rng = Random(4)
    for level in LEVELS:
        prompt = sample_level(family, level, rng, heldout=True).prompt
        assert all(3 <= len(number) <= 6 for number in re.findall(r"\d+", prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_of_trained_sizes(family: str) -> None:
    count = {"sort": 1, "expr": 1, "sum3": 3}.get(family, 2)
    assert {size[:count] for size in FAMILY[family].level_sizes} <= set(FAMILY[family].sizes)


def test_sorting_takes_eight_to_sixteen_digits() -> None:
    assert all(8 <= digits <= 16 for digits, *_ in FAMILY["sort"].level_sizes)


def test_the_numbers_after_a_size_make_what_they_say() -> None:
    rng = Random(8)
    for _ in range(200):
        a, b, _ = re.findall(r"\d+", sample("sum3", (6, 6, 6, 4), rng, heldout=True).prompt)
        assert sum(int(x) + int(y) == 9 for x, y in zip(a[1:], b[1:], strict=True)) >= 4
        digits = sample("sort", (16, 9), rng, heldout=True).target
        assert max(map(digits.count, digits)) == 9
        factors = re.findall(r"(\d)\*(\d+)", sample("expr", (7, 4, 7), rng, heldout=True).prompt)
        assert len(factors) == 4
        assert all(int(factor) >= 7 for factor, _ in factors)


def test_training_never_draws_a_heldout_prompt() -> None:
    rng = Random(5)
    for step in (0, Mixture().growth_steps, 100_000):
        assert not any(is_heldout(Mixture().draw(step, rng).prompt) for _ in range(5_000))


def test_heldout_side_is_a_tenth() -> None:
    rng = Random(6)
    drawn = [FAMILY["add"].make((5, 5), rng).prompt for _ in range(20_000)]
    assert sum(map(is_heldout, drawn)) / len(drawn) == pytest.approx(0.1, abs=0.01)


def test_heldout_side_never_changes() -> None:
    prompts = ["12+34=", "4821+977=", "s83050127=", "977-4821=", "47+8*16-13=", "11+22+33=", "5+7=", "9-2="]
    assert [prompt for prompt in prompts if is_heldout(prompt)] == ["977-4821=", "47+8*16-13="]


def test_sizes_grow() -> None:
    rng, mixture = Random(7), Mixture()
    early, late = ([len(mixture.draw(step, rng).prompt) for _ in range(500)] for step in (0, mixture.growth_steps))
    assert max(early) < max(late)


def test_shares_are_one() -> None:
    assert sum(Mixture().shares) == pytest.approx(1.0)
