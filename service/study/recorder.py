"""An evaluator that writes down what a search tries, in the order it tries it."""

from collections.abc import Sequence
from itertools import accumulate

from models.chain import Chain
from service.cola.evaluator import Answer, Evaluation, Evaluator
from service.study.record import CHECKPOINTS, Searched


class Recorder:
    """Passes everything on to an evaluator, and keeps chains and evaluations."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._tried: list[tuple[Chain, Evaluation]] = []

    @property
    def is_exact(self) -> bool:
        return self._evaluator.is_exact

    @property
    def influence(self) -> Sequence[float]:
        return self._evaluator.influence

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        evaluations = await self._evaluator.evaluate(chains, expected)
        self._tried += zip(chains, evaluations, strict=True)
        return evaluations

    async def answers(self, chains: Sequence[Chain]) -> Sequence[Answer]:
        return await self._evaluator.answers(chains)

    async def answer(self, chain: Chain) -> Answer:
        return await self._evaluator.answer(chain)

    @property
    def shortest(self) -> Chain | None:
        """The shortest chain that gave the expected answer, the first of them; None without a hit."""
        return min((chain for chain, one in self._tried if one.matches), key=len, default=None)

    def searched(self, winner: Chain | None, certified: bool | None) -> Searched:
        """The record of all that was tried."""
        spent = list(accumulate(one.layer_evaluations for _, one in self._tried))
        return Searched(
            simulations=len(self._tried),
            hits=sum(one.matches for _, one in self._tried),
            shortest=tuple(self._improvements()),
            chain=None if winner is None else winner.format(),
            certified=certified,
            layer_evaluations=spent[-1],
            layer_evaluations_naive=sum(one.layer_evaluations_naive for _, one in self._tried),
            spent={n: spent[n - 1] for n in sorted({*CHECKPOINTS, len(spent)}) if n <= len(spent)},
        )

    def _improvements(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for simulation, (chain, one) in enumerate(self._tried, 1):
            if one.matches and (not found or len(chain) < found[-1][1]):
                found.append((simulation, len(chain)))
        return found
