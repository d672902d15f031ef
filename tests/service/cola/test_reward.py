"""What each reward promises. Knows no search."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from models.chain import Chain
from models.errors import InputError
from service.cola.evaluator import Answer, Evaluation
from service.cola.reward import REWARDS, Reward, Verdict, reward_named

FULL = Answer("57", (5, 7), layer_evaluations=24, confidence=0.9, margin=0.7)
TARGET = Answer("58", (5, 8))
SILENT = Answer("", ())
CHAINS = (Chain((0,)), Chain((1,)), Chain((0, 1)))
MATCHING = ["agreement", "target", "wrong_target"]


@dataclass
class Told:
    """An evaluator that says what it was told to."""

    evaluations: Sequence[Evaluation] = ()
    said: Sequence[Answer] = ()
    expected: list[Answer] = field(default_factory=list)

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        self.expected.append(expected)
        return self.evaluations

    async def answers(self, chains: Sequence[Chain]) -> Sequence[Answer]:
        return self.said


def judge(reward: Reward, told: Told, chains: Sequence[Chain] = CHAINS, ran: Answer | None = None) -> list[Verdict]:
    return list(asyncio.run(reward.judge(told, chains, TARGET, ran)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "oracle", "needs_decode", "ceiling"),
    [
        ("target", True, False, 1.0),
        ("wrong_target", True, False, 1.0),
        ("agreement", False, False, 1.0),
        ("choice", True, False, None),
        ("confidence", False, True, None),
        ("margin", False, True, None),
        ("consistency", False, True, None),
    ],
)
def test_each_reward_declares_what_it_needs(name: str, oracle: bool, needs_decode: bool, ceiling: float | None) -> None:
    reward = reward_named(name)
    assert (reward.oracle, reward.needs_target) == (oracle, oracle)
    assert (reward.needs_decode, reward.ceiling, reward.deterministic) == (needs_decode, ceiling, True)
    assert reward.holds_for_full == (name == "agreement")


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_with_a_label_the_label_is_expected_else_the_full_chains_answer(name: str) -> None:
    reward = reward_named(name)
    assert reward.expected(FULL, TARGET if reward.needs_target else None) == (TARGET if reward.oracle else FULL)


@pytest.mark.parametrize("name", MATCHING)
def test_a_match_is_worth_one_and_anything_else_nothing(name: str) -> None:
    told = Told([Evaluation(True, 3, 9), Evaluation(False, 0, 9, lead=-0.1)])
    assert judge(reward_named(name), told) == [Verdict(1.0, 3, 9), Verdict(0.0, 0, 9)]
    assert told.expected == [TARGET]


@pytest.mark.parametrize("name", MATCHING)
def test_what_ran_alone_has_the_last_word(name: str) -> None:
    told = Told([Evaluation(True, 3, 9)])
    assert judge(reward_named(name), told, CHAINS[:1], ran=FULL) == [Verdict(0.0, 3, 9)]


def test_a_choice_is_worth_its_lead() -> None:
    told = Told([Evaluation(True, 1, 1, lead=0.25), Evaluation(False, 0, 1, lead=-0.5)])
    assert [one.reward for one in judge(reward_named("choice"), told)] == [0.25, -0.5]
    with pytest.raises(InputError, match="send them as 'choices'"):
        judge(reward_named("choice"), Told([Evaluation(True, 1, 1)]))


@pytest.mark.parametrize(("name", "worth"), [("confidence", [0.5, 0.0]), ("margin", [0.2, 0.0])])
def test_own_answers_are_worth_what_the_model_thinks_of_them(name: str, worth: list[float]) -> None:
    said = [Answer("1", (1,), 7, confidence=0.5, margin=0.2), SILENT]
    verdicts = judge(reward_named(name), Told(said=said), CHAINS[:2])
    assert [one.reward for one in verdicts] == worth
    assert [(one.layer_evaluations, one.layer_evaluations_naive) for one in verdicts] == [(7, 7), (0, 0)]


def test_the_full_chain_is_not_decoded_twice() -> None:
    assert judge(reward_named("confidence"), Told(), CHAINS[:1], ran=FULL) == [Verdict(0.9, 0, 0)]


def test_consistency_is_the_share_of_equal_answers_and_follows_the_vote() -> None:
    reward = reward_named("consistency")
    yes, no = Answer("yes", (1,)), Answer("no", (2,))
    assert [one.reward for one in judge(reward, Told(said=[yes, yes, no]))] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    later = [Chain((n,)) for n in (5, 6, 7)]
    judge(reward, Told(said=[no, no, SILENT]), later)
    assert reward.revised() == pytest.approx(
        {
            **{CHAINS[0]: 2 / 6, CHAINS[1]: 2 / 6, CHAINS[2]: 3 / 6},
            **{later[0]: 3 / 6, later[1]: 3 / 6, later[2]: 0.0},
        }
    )


@pytest.mark.parametrize("name", [*MATCHING, "choice"])
def test_tokens_certify_an_answer_whatever_it_cost(name: str) -> None:
    reward = reward_named(name)
    assert reward.certifies(CHAINS[0], Answer("57", (5, 7), layer_evaluations=1), FULL)
    assert not reward.certifies(CHAINS[0], Answer("57", (57,)), FULL)


@pytest.mark.parametrize("name", ["confidence", "margin", "consistency"])
def test_an_own_answer_is_certified_by_saying_it_again(name: str) -> None:
    reward = reward_named(name)
    judge(reward, Told(said=[Answer("1", (1,))]), CHAINS[:1])
    assert reward.certifies(CHAINS[0], Answer("1", (1,)), FULL)
    assert not reward.certifies(CHAINS[0], Answer("2", (2,)), FULL)


def test_an_unknown_reward_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        InputError, match=r"'luck' is unknown; use one of agreement, choice, .*, verifier, wrong_target"
    ):
        reward_named("luck")
