"""The rewards: what a search counts as success, and whether it had to be told. Knows no search and no runtime.

A new reward is one class and one row in `REWARDS`. Beware of the label-free graded ones: the likeliest answers of all
chains of a sample are mostly wrong, for broken chains are the most confident. They rank; they do not prove.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from models.chain import Chain
from models.errors import InputError
from service.cola.evaluator import Answer, Evaluation, Evaluator


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reward of one chain and what finding it out cost, as in `Evaluation`."""

    reward: float
    layer_evaluations: int
    layer_evaluations_naive: int


class Reward(Protocol):
    """One way to judge the chains of one sample; it may remember what it judged, so each search has its own.

    oracle: it uses the label, so a found chain proves existence, not skill. needs_target: the caller must say the
    expected answer. needs_decode: each chain's own answer is generated. deterministic: the same chain always gets the
    same reward. ceiling: the most there is, None if it is graded. holds_for_full: the full chain has it by definition.
    """

    name: ClassVar[str]
    oracle: ClassVar[bool]
    needs_target: ClassVar[bool]
    needs_decode: ClassVar[bool]
    deterministic: ClassVar[bool]
    ceiling: ClassVar[float | None]
    holds_for_full: ClassVar[bool]

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        """The answer that chains are scored against, given the full chain's."""
        ...

    async def judge(
        self, evaluator: Evaluator, chains: Sequence[Chain], expected: Answer, ran: Answer | None = None
    ) -> Sequence[Verdict]:
        """Larger is better; 0 or less means that the chain does not do what was asked and cannot win.

        ran: what the only chain said when it ran alone, which then has the last word.
        """
        ...

    def revised(self) -> Mapping[Chain, float]:
        """Rewards that what was judged later has changed."""
        ...

    def certifies(self, chain: Chain, answer: Answer, expected: Answer) -> bool:
        """Whether a chain that gave this answer when run alone keeps the promise of its reward."""
        ...


class _Scored:
    """Judged by teacher forcing against the expected answer: no decode, and each shared prefix runs once."""

    oracle: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True
    needs_decode: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    ceiling: ClassVar[float | None] = 1.0
    holds_for_full: ClassVar[bool] = False

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        assert target is not None, "a task without the target its reward needs cannot be made"
        return target

    async def judge(
        self, evaluator: Evaluator, chains: Sequence[Chain], expected: Answer, ran: Answer | None = None
    ) -> Sequence[Verdict]:
        evaluations = await evaluator.evaluate(chains, expected)
        if ran is not None:
            # Teacher-forced scores may differ by rounding, and the full chain must agree with itself.
            evaluations = [replace(one, matches=ran.agrees_with(expected)) for one in evaluations]
        return [Verdict(self._value(one), one.layer_evaluations, one.layer_evaluations_naive) for one in evaluations]

    def revised(self) -> Mapping[Chain, float]:
        return {}

    def certifies(self, chain: Chain, answer: Answer, expected: Answer) -> bool:
        return answer.agrees_with(expected)

    def _value(self, evaluation: Evaluation) -> float:
        return float(evaluation.matches)


class Target(_Scored):
    """1 for giving the answer the caller wants, else 0: arXiv 2507.07996, section 3, without its length term."""

    name: ClassVar[str] = "target"


class WrongTarget(_Scored):
    """The control of `target`: 1 for giving an answer that is known to be wrong.

    A search that hits it as often as the truth shows what luck alone does.
    """

    name: ClassVar[str] = "wrong_target"


class Agreement(_Scored):
    """1 for giving the full chain's answer, else 0; the shortest such chain wins."""

    name: ClassVar[str] = "agreement"
    oracle: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    holds_for_full: ClassVar[bool] = True

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        return full


class Choice(_Scored):
    """The lead of the right choice over the likeliest other, by log-likelihood: -1..1, above 0 if it is chosen."""

    name: ClassVar[str] = "choice"
    ceiling: ClassVar[float | None] = None

    def _value(self, evaluation: Evaluation) -> float:
        if evaluation.lead is None:
            raise InputError("reward 'choice' compares the choices of a question; send them as 'choices'")
        return evaluation.lead


class Decoded:
    """Judged by what the chain says itself, without a label. Subclasses say what an answer is worth."""

    oracle: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    needs_decode: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    ceiling: ClassVar[float | None] = None
    holds_for_full: ClassVar[bool] = False

    def __init__(self) -> None:
        self._answers: dict[Chain, Answer] = {}

    def expected(self, full: Answer, target: Answer | None) -> Answer:
        return full

    async def judge(
        self, evaluator: Evaluator, chains: Sequence[Chain], expected: Answer, ran: Answer | None = None
    ) -> Sequence[Verdict]:
        answers = await evaluator.answers(chains) if ran is None else [replace(ran, layer_evaluations=0)]
        self._answers.update(zip(chains, answers, strict=True))
        rewards = await self._values(answers)
        costs = [answer.layer_evaluations for answer in answers]
        return [Verdict(reward, cost, cost) for reward, cost in zip(rewards, costs, strict=True)]

    def revised(self) -> Mapping[Chain, float]:
        return {}

    def certifies(self, chain: Chain, answer: Answer, expected: Answer) -> bool:
        return answer.agrees_with(self._answers[chain])

    async def _values(self, answers: Sequence[Answer]) -> Sequence[float]:
        raise NotImplementedError


class Confidence(Decoded):
    """The probability of the chain's own answer, 0..1."""

    name: ClassVar[str] = "confidence"

    async def _values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [answer.confidence for answer in answers]


class Margin(Decoded):
    """The probability by which the chain's own answer leads the next likeliest, 0..1."""

    name: ClassVar[str] = "margin"

    async def _values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [answer.margin for answer in answers]


class Consistency(Decoded):
    """The share of all chains tried that say the same, 0..1; while the search runs, of those tried so far."""

    name: ClassVar[str] = "consistency"

    async def _values(self, answers: Sequence[Answer]) -> Sequence[float]:
        votes = self._votes()
        return [votes[answer.token_ids] for answer in answers]

    def revised(self) -> Mapping[Chain, float]:
        votes = self._votes()
        return {chain: votes[answer.token_ids] for chain, answer in self._answers.items()}

    def _votes(self) -> Mapping[tuple[int, ...], float]:
        counts = Counter(answer.token_ids for answer in self._answers.values())
        shares = {token_ids: count / len(self._answers) for token_ids, count in counts.items()}
        return shares | {(): 0.0}  # a chain that says nothing has no vote that could win


REWARDS: Mapping[str, type[Target | WrongTarget | Agreement | Choice | Confidence | Margin | Consistency]] = {
    reward.name: reward for reward in (Target, WrongTarget, Agreement, Choice, Confidence, Margin, Consistency)
}


def reward_named(name: str) -> Reward:
    """A new reward of that name. Raises InputError listing the names there are."""
    if name not in REWARDS:
        raise InputError(f"reward {name!r} is unknown; use one of {', '.join(sorted((*REWARDS, 'verifier')))}")
    reward: Reward = REWARDS[name]()
    return reward
