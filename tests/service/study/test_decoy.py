"""Decoys are wrong answers in the right form; answer spaces are counted, not guessed."""

from math import log10
from random import Random

import pytest

from models.errors import InputError
from service.study.dataset import Row
from service.study.decoy import decoy_of, log10_answers, one_digit_changed


def test_every_decoy_changes_one_digit_and_no_number_gains_a_leading_zero() -> None:
    changed = one_digit_changed("-10,5", ordered=False)
    assert len(changed) == len(set(changed)) == 8 + 9 + 9
    for text in changed:
        assert sum(a != b for a, b in zip(text, "-10,5", strict=True)) == 1
        assert text[1] != "0"


def test_decoys_of_sorted_digits_stay_sorted() -> None:
    assert one_digit_changed("0259", ordered=True) == [
        *("1259", "2259"),
        *("0059", "0159", "0359", "0459", "0559"),
        *("0229", "0239", "0249", "0269", "0279", "0289", "0299"),
        *("0255", "0256", "0257", "0258"),
    ]
    assert one_digit_changed("9999", ordered=True) == [f"{digit}999" for digit in range(9)]


def test_family_sort_keeps_order_and_other_families_need_not() -> None:
    chosen = {
        family: {decoy_of(Row(1, "s", "0259", family), None, "", Random(seed)) for seed in range(200)}
        for family in ("sort", "add")
    }
    assert chosen["sort"] == set(one_digit_changed("0259", ordered=True))
    assert len(chosen["add"]) > len(chosen["sort"])


def test_decoy_is_never_the_full_chains_own_answer() -> None:
    drawn = {decoy_of(Row(1, "p", "7"), None, "5", Random(seed)) for seed in range(200)}
    assert drawn == set("01234689")
    drawn_classes = {decoy_of(Row(1, [0.0], 2), 4, "0", Random(seed)) for seed in range(50)}
    assert drawn_classes == {1, 3}


def test_rows_own_decoy_comes_first_and_text_without_digits_needs_one() -> None:
    assert decoy_of(Row(1, "capital?", "Paris", decoy="Rome"), None, "", Random(0)) == "Rome"
    with pytest.raises(InputError, match="line 4: target 'Paris' has no digit to change"):
        decoy_of(Row(4, "capital?", "Paris"), None, "", Random(0))


@pytest.mark.parametrize(
    ("target", "ordered", "count"),
    [
        ("5", False, 10),
        ("123", False, 900),
        ("-10,5", False, 90 * 10),
        ("007", False, 1000),
        ("00", True, 55),
        (3, False, 4),
    ],
)
def test_answers_of_one_form_are_counted(target: str | int, ordered: bool, count: int) -> None:
    assert log10_answers(target, ordered, num_classes=4) == pytest.approx(log10(count))


def test_answers_without_digits_are_not_counted() -> None:
    assert log10_answers("Paris", ordered=False, num_classes=None) is None
