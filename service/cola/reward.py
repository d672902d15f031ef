"""The rewards: what a search counts as success, and whether it had to be told. Knows no search and no model.

A new reward is one class and one row in `REWARDS`.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from models.errors import InputError
from service.cola.evaluator import Answer, Evaluation


class Reward(Protocol):
    """One way to judge chains.

    oracle: the reward uses the label, so a found chain proves existence, not skill. needs_target: the caller must
    say the expected answer.
    """

    name: ClassVar[str]
    oracle: ClassVar[bool]
    needs_target: ClassVar[bool]

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        """The answer that chains are scored against, given the full chain's."""
        ...

    def value(self, evaluation: Evaluation) -> float:
        """Larger is better; 0 or less means that the chain does not do what was asked and cannot win."""
        ...

    def certifies(self, answer: Answer, expected: Answer) -> bool:
        """Whether a chain that gave this answer when run alone keeps the promise of its reward."""
        ...


@dataclass(frozen=True, slots=True)
class _Match:
    """Reward 1 for giving the expected answer, else 0: arXiv 2507.07996, section 3, without its length term."""

    def value(self, evaluation: Evaluation) -> float:
        return float(evaluation.matches)

    def certifies(self, answer: Answer, expected: Answer) -> bool:
        return answer.agrees_with(expected)


@dataclass(frozen=True, slots=True)
class Target(_Match):
    """The chain gives the answer the caller wants."""

    name: ClassVar[str] = "target"
    oracle: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        assert target is not None, "a task without the target its reward needs cannot be made"
        return target


@dataclass(frozen=True, slots=True)
class Agreement(_Match):
    """The chain gives the full chain's answer; the shortest such chain wins."""

    name: ClassVar[str] = "agreement"
    oracle: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        return full


REWARDS: dict[str, Reward] = {reward.name: reward for reward in (Target(), Agreement())}


def reward_named(name: str) -> Reward:
    """The reward of that name. Raises InputError listing the names there are."""
    if name not in REWARDS:
        raise InputError(f"reward {name!r} is unknown; use one of {', '.join(sorted(REWARDS))}")
    return REWARDS[name]
