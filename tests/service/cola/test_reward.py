"""What each reward promises. Knows no search."""

import pytest

from models.errors import InputError
from service.cola.evaluator import Answer, Evaluation
from service.cola.reward import REWARDS, reward_named

FULL = Answer("57", (5, 7), layer_evaluations=24)
TARGET = Answer("58", (5, 8))


def test_target_is_an_oracle_and_expects_the_label() -> None:
    reward = reward_named("target")
    assert (reward.oracle, reward.needs_target) == (True, True)
    assert reward.expected(FULL, TARGET) == TARGET


def test_agreement_needs_no_label_and_expects_the_full_chains_answer() -> None:
    reward = reward_named("agreement")
    assert (reward.oracle, reward.needs_target) == (False, False)
    assert reward.expected(FULL, None) == FULL


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_match_is_worth_one_and_anything_else_nothing(name: str) -> None:
    matched = Evaluation(matches=True, layer_evaluations=3, layer_evaluations_naive=9)
    missed = Evaluation(matches=False, layer_evaluations=3, layer_evaluations_naive=9, log_probability=-0.1)
    assert (reward_named(name).value(matched), reward_named(name).value(missed)) == (1.0, 0.0)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_tokens_certify_an_answer_whatever_it_cost(name: str) -> None:
    reward = reward_named(name)
    assert reward.certifies(Answer("57", (5, 7), layer_evaluations=1), FULL)
    assert not reward.certifies(Answer("57", (57,)), FULL)


def test_an_unknown_reward_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match=r"'luck' is unknown; use one of agreement, target"):
        reward_named("luck")
