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
    confidence: probability of the answer, of generated text the geometric mean over its tokens. margin: probability
    by which it leads the next likeliest, of text the mean over its tokens. Both in 0..1; 0 for what a caller wants.
    """

    text: str
    token_ids: tuple[int, ...]
    layer_evaluations: int = 0
    confidence: float = 0.0
    margin: float = 0.0

    def agrees_with(self, other: "Answer") -> bool:
        """Whether both say the same, whatever it cost them."""
        return self.token_ids == other.token_ids


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One chain, scored against an expected answer.

    matches: its greedy answer would be the expected one. layer_evaluations: made for this chain, one per layer and
    token, none for what it shares with an earlier chain. layer_evaluations_naive: had it run and decoded alone.
    lead: probability of the expected answer less that of the likeliest other, -1..1; None where answers are open.
    """

    matches: bool
    layer_evaluations: int
    layer_evaluations_naive: int
    lead: float | None = None


class Evaluator(Protocol):
    """One sample on one model."""

    @property
    def is_exact(self) -> bool:
        """Whether `answer` is what serving would say; else nothing is certified."""
        ...

    @property
    def influence(self) -> Sequence[float]:
        """1 - cos(in, out) of each layer on the full chain [num_layers], or empty before that was evaluated."""
        ...

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        """Score a batch of chains, one evaluation each and in order, teacher-forced with the expected answer."""
        ...

    async def answers(self, chains: Sequence[Chain]) -> Sequence[Answer]:
        """What each chain says, run together; a chain along which numbers overflow says nothing, with no tokens."""
        ...

    async def answer(self, chain: Chain) -> Answer:
        """Run one chain alone, exactly as serving would: greedy decoding, or classification."""
        ...
