"""The numbers of a report, recomputed by hand from four hand-written results."""

from math import log, sqrt

import pytest

from service.study.numbers import group_numbers, groups_of, numbers_of
from service.study.record import SampleResult
from service.study.usage import layer_rates, usage


def test_groups_are_everyone_families_levels_and_cells(results: list[SampleResult]) -> None:
    groups = {name: [one.line for one in members] for name, members in groups_of(results).items()}
    assert groups == {
        "all": [1, 2, 3, 4],
        "add": [1, 2],
        "sort": [3, 4],
        "level 1": [1, 2],
        "level 2": [3, 4],
        "add 1": [1, 2],
        "sort 2": [3, 4],
    }
    assert groups_of(results[:1]).keys() == {"all"}


def test_accuracy_counts_every_sample_with_a_chain_and_the_decoy_beside_it(results: list[SampleResult]) -> None:
    found = group_numbers(results)
    assert (found["n"], found["right"], found["wrong"], found["log10_answers"]) == (4, 1, 3, 5.0)
    shares = {way: (one["target"], one["decoy"]) for way, one in found["accuracy"].items() if "samples" not in way}
    assert shares == {"both": (0.75, 0.5), "skip": (0.5, 0), "repeat": (0.5, 0.25), "random": (0.75, 0)}


def test_lift_is_the_paired_difference_with_its_standard_error(results: list[SampleResult]) -> None:
    """The search hits truth and decoy of two of three wrong samples; random chains hit the truth of the same two."""
    corrected = group_numbers(results)["corrected"]
    assert corrected["both"] == {"target": 2 / 3, "decoy": 2 / 3, "lift": 0, "error": 0}
    assert corrected["random"]["lift"] == pytest.approx(2 / 3)
    assert corrected["random"]["error"] == pytest.approx(sqrt((1 / 9 + 4 / 9 + 1 / 9) / 2 / 3))


def test_temperature_samples_have_the_searchs_cost(results: list[SampleResult]) -> None:
    """40 layer evaluations buy the prompt for 20 and four answers of 5; a right greedy answer is a hit already."""
    samples = group_numbers(results)["corrected"]["samples 1.0"]
    assert samples["target"] == pytest.approx((1 - 0.75**4 + 1 - 0.99**4 + 1 - 0.5**4) / 3)
    assert samples["decoy"] == pytest.approx((1 - 0.9**4 + 1 - 0.99**4 + 1 - 0.9**4) / 3)
    everyone = group_numbers(results)["accuracy"]["samples 1.0"]
    assert everyone["target"] == pytest.approx((1 + 3 * samples["target"]) / 4)
    assert everyone["decoy"] == pytest.approx((1 - 0.5**4 + 3 * samples["decoy"]) / 4)


def test_shorter_chains_of_right_and_of_wrong_samples(results: list[SampleResult]) -> None:
    found = group_numbers(results)
    shortened = {way: (one["target"], one["decoy"]) for way, one in found["shortened"].items()}
    assert shortened == {"both": (1, 0), "skip": (1, 0), "repeat": (0, 0), "random": (0, 0)}
    assert found["corrected_shorter"]["both"]["target"] == pytest.approx(1 / 3)
    assert found["corrected_shorter"]["both"]["decoy"] == pytest.approx(1 / 3)
    assert found["length"] == {"right": 2, "corrected": 3.5, "decoy": 4.5, "agreement": (2 + 4 + 1 + 4) / 4}
    assert found["agreement_shorter"] == 0.5


def test_group_without_right_samples_has_no_such_numbers(results: list[SampleResult]) -> None:
    found = group_numbers(results[2:])
    assert found["shortened"]["both"] == {"target": None, "decoy": None, "lift": None, "error": None}
    assert found["length"]["right"] is None


def test_curve_counts_only_what_a_smaller_budget_finds(results: list[SampleResult]) -> None:
    numbers = numbers_of(results)
    assert list(numbers["curve"]) == ["4"]
    assert numbers["curve"]["4"]["corrected"]["both"]["target"] == pytest.approx(2 / 3)
    within = [one.found["target"]["both"].length_within(2) for one in results]
    assert within == [4, 5, None, None]


def test_per_chain_rates_weigh_samples_alike(results: list[SampleResult]) -> None:
    per_chain = numbers_of(results)["per_chain"]
    assert per_chain["both"] == {"target": (2 / 4 + 0 + 1 / 4) / 3, "decoy": (1 / 4 + 0 + 1 / 4) / 3}
    assert per_chain["samples 1.0"]["target"] == pytest.approx((0.25 + 0.01 + 0.5) / 3)


def test_winners_are_told_apart_by_what_they_were_for(results: list[SampleResult]) -> None:
    numbers = numbers_of(results)
    assert numbers["layers"]["right"] == {"skip": [0, 0, 1, 1], "repeat": [0, 0, 0, 0]}
    assert numbers["layers"]["corrected"] == {"skip": [0, 0.5, 0.5, 0], "repeat": [0, 0, 0.5, 0]}
    assert numbers["layers"]["decoy"] == {"skip": [0, 0.5, 0, 0], "repeat": [0, 0, 0.5, 0.5]}
    assert {name: one["n"] for name, one in numbers["usage"].items()} == {"right": 1, "corrected": 2, "decoy": 2}


def test_certified_counts_searches_and_cost_is_that_of_the_free_search(results: list[SampleResult]) -> None:
    numbers = numbers_of(results)
    assert numbers["certified"] == {"found": 14, "certified": 14}
    assert numbers["cost"] == {"layer_evaluations": 40, "layer_evaluations_naive": 80, "draws": 4, "seconds": 2.5}


def test_usage_of_two_chains_by_hand() -> None:
    """Visits 0,1,1 and 0,2: layers 0 and 1 have two of five visits each; one visit is common to five less one."""
    found = usage(["0-1,1", "0,2"])
    assert found["entropy"] == pytest.approx(-(2 * 0.4 * log(0.4) + 0.2 * log(0.2)))
    assert found["overlap"] == pytest.approx(1 / 4)
    assert (found["n"], found["distinct"], found["most_common"], found["concentration"]) == (2, 2, 0.5, 0.4)
    assert layer_rates(["0-1,1", "0,2"], 3) == {"skip": [0, 0.5, 0.5], "repeat": [0, 0.5, 0]}


def test_no_winners_no_rates() -> None:
    assert layer_rates([], 3) == {"skip": [], "repeat": []}
    assert usage([])["entropy"] is None
