"""Wrong answers to search for, and how many answers there are. Knows no model and no search.

A search that finds the right answer proves little if it finds a wrong one as often; few possible answers are the
usual reason that it does.
"""

import math
import re
from random import Random

from models.errors import InputError
from service.study.dataset import Row

# Answers of this family are digits in order, and so are their decoys.
ORDERED_FAMILY = "sort"
_NUMBER = re.compile(r"[0-9]+")


def decoy_of(row: Row, num_classes: int | None, avoid: str, rng: Random) -> str | int:
    """A wrong answer in the form of the right one, and not `avoid`, the one that the full chain gives anyway.

    The row's own; else another class, of `num_classes`; else the target with one digit changed, in order where the
    target has to be. Raises InputError naming the line if there is none.
    """
    if row.decoy is not None:
        return row.decoy
    candidates: list[str | int]
    if isinstance(row.target, int):
        assert num_classes is not None, "only classifiers have integer targets"
        candidates = [label for label in range(num_classes) if label != row.target]
    else:
        candidates = [*one_digit_changed(row.target, row.family == ORDERED_FAMILY)]
    candidates = [one for one in candidates if str(one) != avoid] or candidates
    if not candidates:
        raise InputError(f"line {row.line}: target {row.target!r} has no digit to change; give the row a 'decoy'")
    return rng.choice(candidates)


def one_digit_changed(target: str, ordered: bool) -> list[str]:
    """Every text with one other digit. No number gets a leading zero; `ordered` digits stay in order."""
    changed = [
        target[:place] + digit + target[place + 1 :]
        for place, old in enumerate(target)
        for digit in "0123456789"
        if old in "0123456789" and digit != old
    ]
    if ordered:
        return [text for text in changed if list(text) == sorted(text)]
    return [text for text in changed if _num_leading_zeros(text) <= _num_leading_zeros(target)]


def log10_answers(target: str | int, ordered: bool, num_classes: int | None) -> float | None:
    """How many answers have the form of the target, as a power of ten; None for a text without digits.

    The classes; the ways to choose n digits without order; else the numbers with as many digits, for each number.
    """
    if isinstance(target, int):
        assert num_classes is not None, "only classifiers have integer targets"
        return math.log10(num_classes)
    numbers = _NUMBER.findall(target)
    if not numbers:
        return None
    if ordered:
        return math.log10(math.comb(len(target) + 9, 9))
    return sum(_log10_numbers(number) for number in numbers)


def _log10_numbers(number: str) -> float:
    first_digits = 10 if number[0] == "0" or len(number) == 1 else 9
    return len(number) - 1 + math.log10(first_digits)


def _num_leading_zeros(text: str) -> int:
    return sum(len(number) > 1 and number[0] == "0" for number in _NUMBER.findall(text))
