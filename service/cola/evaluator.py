"""What a search asks of a model: score these chains, really run this one. Knows no search and no runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.chain import Chain


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says about one sample, or a caller wants it to say.

    text: generated text, or the name of a class. token_ids: the generated tokens with the end token, or the one
    class index; two answers are the same if these are. layer_evaluations: what it cost, one per layer and token.
    """

    text: str
    token_ids: tuple[int, ...]
    layer_evaluations: int = 0

    def agrees_with(self, other: "Answer") -> bool:
        """Whether both say the same, whatever it cost them."""
        return self.token_ids == other.token_ids


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One chain, scored against an expected answer.

    matches: its greedy answer would be the expected one. log_probability: natural, of the whole expected answer;
    None where the evaluator stopped at the first mismatch. layer_evaluations: made for this chain, one per layer and
    token, none for what it shares with an earlier chain. layer_evaluations_naive: had it run and decoded alone.
    """

    matches: bool
    layer_evaluations: int
    layer_evaluations_naive: int
    log_probability: float | None = None


class Evaluator(Protocol):
    """One sample on one model."""

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        """Score a batch of chains, one evaluation each and in order, teacher-forced with the expected answer."""
        ...

    async def answer(self, chain: Chain) -> Answer:
        """Run one chain alone, exactly as serving would: greedy decoding, or classification."""
        ...
