"""Generated problems `PROMPT=ANSWER`, five families, five levels each. Standard library only; knows no model.

A problem has a size: the digits of each operand (add, sub, sum3; the longer first), the digits to sort (sort), or the
operators (expr). More numbers make rarer, harder problems of the same size: how many columns are undecided, that is
leave it to the columns right of them whether they carry or borrow (add, sub, the first sum of sum3; operands of one
length), how many of the digits are one and the same (sort), how many of the operators are products and how small their
factors may be (expr). A level is one size; what is trained is wider than the levels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

FAMILIES = ("add", "sub", "sum3", "sort", "expr")
LEVELS = (1, 2, 3, 4, 5)

Size: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with its `=`, and the one right answer without the end token."""

    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Family:
    """How problems of a size are made, which sizes are trained, and which size each level is."""

    make: Callable[[Size, Random], Problem]
    easy_sizes: tuple[Size, ...]
    hard_sizes: tuple[Size, ...]
    level_sizes: tuple[Size, Size, Size, Size, Size]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All trained sizes, the easier first."""
        return self.easy_sizes + self.hard_sizes


def is_heldout(prompt: str) -> bool:
    """Whether this prompt belongs to the tenth of all prompts that is never trained on."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest()) % 10 == 0


def sample(family: str, size: Size, rng: Random, heldout: bool) -> Problem:
    """Draw a problem of `size` from the held-out or from the training side."""
    while True:
        problem = FAMILY[family].make(size, rng)
        if is_heldout(problem.prompt) is heldout:
            return problem


def sample_level(family: str, level: int, rng: Random, heldout: bool) -> Problem:
    """Draw a problem of level 1 to 5."""
    return sample(family, FAMILY[family].level_sizes[level - 1], rng, heldout)


def _add(size: Size, rng: Random) -> Problem:
    a, b = _summands(size, rng)
    return Problem(f"{a}+{b}=", str(a + b))


def _sub(size: Size, rng: Random) -> Problem:
    a, b = _pair(size, rng, undecided=lambda digit: digit)
    return Problem(f"{a}-{b}=", str(a - b))


def _sum3(size: Size, rng: Random) -> Problem:
    """A sum of three numbers; the answer lists both running totals, as that of an expression does."""
    first, second, third, *undecided = size
    a, b = _summands((first, second, *undecided), rng)
    c = _number(third, rng)
    return Problem(f"{a}+{b}+{c}=", f"{a + b},{a + b + c}")


def _sort(size: Size, rng: Random) -> Problem:
    if not size[1:]:
        digits = rng.choices("0123456789", k=size[0])
    else:
        common, *others = rng.sample("0123456789", 10)
        digits = [common] * size[1] + rng.choices(others, k=size[0] - size[1])
        rng.shuffle(digits)
    return Problem(f"s{''.join(digits)}=", "".join(sorted(digits)))


def _expr(size: Size, rng: Random) -> Problem:
    """A sum of numbers and products; the answer lists every product and every running total, from left to right."""
    text, total, values, left, plan = "", None, list[int](), size[0], _plan(size, rng)
    least_factor = size[2] if size[2:] else 2
    while total is None or left:
        sign = "" if total is None else rng.choice("+-")
        left -= total is not None
        factors, value = _term(left, plan, least_factor, rng)
        left -= len(factors) - 1
        text += sign + "*".join(map(str, factors))
        values += [value] * (len(factors) > 1)
        values += [] if total is None else [total + (-value if sign == "-" else value)]
        total = value if total is None else values[-1]
    return Problem(f"{text}=", ",".join(map(str, values)))


def _plan(size: Size, rng: Random) -> list[bool]:
    """Which terms are products, if the size says how many; empty if it does not."""
    if not size[1:]:
        return []
    operators, products = size[:2]
    return rng.sample([True] * products + [False] * (operators - 2 * products + 1), operators - products + 1)


def _term(operators: int, plan: list[bool], least_factor: int, rng: Random) -> tuple[tuple[int, ...], int]:
    """The factors and the value of one term; without a plan a product, which takes an operator, one time in three."""
    number = rng.randint(10, 99)
    if plan.pop() if plan else operators and rng.random() < 1 / 3:
        factor = rng.randint(least_factor, 9)
        return (factor, number), factor * number
    return (number,), number


def _summands(size: Size, rng: Random) -> tuple[int, int]:
    return _pair(size, rng, undecided=lambda digit: 9 - digit)


def _pair(size: Size, rng: Random, undecided: Callable[[int], int]) -> tuple[int, int]:
    """Two numbers; in as many columns as the size says, never the first, b's digit is the `undecided` one for a's."""
    a, b = (_number(length, rng) for length in size[:2])
    if not size[2:]:
        return a, b
    digits = list(str(b))
    for column in rng.sample(range(1, size[1]), size[2]):
        digits[column] = str(undecided(int(str(a)[column])))
    return a, int("".join(digits))


def _number(length: int, rng: Random) -> int:
    return rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)


_PAIRS = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 2), (4, 3))
_LONG_PAIRS = ((5, 3), (6, 3), (4, 4), (5, 4), (6, 4), (5, 5), (6, 5), (6, 6))
_TRIPLES = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (3, 3, 3), (4, 3, 3))
_LONG_TRIPLES = ((5, 3, 3), (6, 3, 3), (4, 4, 4), (5, 4, 4), (5, 5, 5), (6, 5, 5), (6, 6, 6))

FAMILY = {
    "add": Family(_add, _PAIRS, _LONG_PAIRS, ((5, 3), (5, 5), (6, 6, 1), (6, 6, 2), (6, 6, 3))),
    "sub": Family(_sub, _PAIRS, _LONG_PAIRS, ((5, 3), (5, 4), (6, 6), (6, 6, 2), (6, 6, 3))),
    "sum3": Family(_sum3, _TRIPLES, _LONG_TRIPLES, ((5, 3, 3), (5, 4, 4), (6, 6, 6, 1), (6, 6, 6, 3), (6, 6, 6, 4))),
    "sort": Family(
        _sort,
        ((2,), (3,), (4,), (5,), (6,), (7,)),
        ((8,), (10,), (12,), (14,), (16,)),
        ((8,), (16,), (16, 8), (16, 9), (14, 9)),
    ),
    "expr": Family(
        _expr, ((1,),), ((2,), (3,), (4,), (5,), (6,), (7,)), ((2, 1), (4, 1), (7, 3), (7, 4, 5), (7, 4, 7))
    ),
}
