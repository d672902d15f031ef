"""The anytime search of one sample: propose, evaluate, observe, certify. Knows the model only as an evaluator."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from models.chain import Chain
from service.cola.evaluator import Answer, Evaluation, Evaluator
from service.cola.mcts import Search
from service.cola.task import Outcome, Progress, Result, Spent, StoppedBy, Task

OnProgress: TypeAlias = Callable[[Progress], Awaitable[None]]

# Winners that fail when run alone are rare (rounding at a tie); past this many the full chain is the answer.
_MAX_CERTIFICATIONS = 8


async def find_chain(
    task: Task,
    evaluator: Evaluator,
    on_progress: OnProgress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Search the chain with the highest reward, then the fewest visits, and run it alone to certify it.

    `on_progress` is awaited after each batch of leaves. `clock` gives seconds. Errors of the evaluator and
    cancellation pass through.
    """
    run = _Run(task, evaluator, clock)
    await run.begin()
    stopped_by: StoppedBy | None = None
    while stopped_by is None:
        if on_progress is not None:
            await on_progress(run.progress())
        stopped_by = run.limit_met() or await run.round()
    return await run.finish(stopped_by)


class _Run:
    """One search under way: the tree, the full chain's outcome and what was spent."""

    full: Outcome

    def __init__(self, task: Task, evaluator: Evaluator, clock: Callable[[], float]) -> None:
        self._task = task
        self._evaluator = evaluator
        self._clock = clock
        self._started = clock()
        self._simulations = 0
        self._layer_evaluations = 0
        self._layer_evaluations_naive = 0
        self._search = Search(task.num_layers, task.space, task.mcts, task.seed)

    async def begin(self) -> None:
        """Run the full chain alone, then observe it as the first simulation."""
        [chain] = self._search.propose(1)
        answer = await self._answer(chain)
        self._expected = self._task.reward.expected(answer, self._task.target)
        [evaluation] = await self._evaluate([chain])
        # Its own run has the last word: teacher-forced scores may differ by rounding, and it must agree with itself.
        evaluation = replace(evaluation, matches=answer.agrees_with(self._expected))
        reward = self._task.reward.value(evaluation)
        self._search.observe(chain, reward)
        self.full = Outcome(chain, reward, answer, self._task.reward.certifies(answer, self._expected))

    async def round(self) -> StoppedBy | None:
        """Evaluate and observe one batch of leaves; says so when there are none left."""
        chains = self._search.propose(self._leaves())
        if not chains:
            return "exhausted"
        for chain, evaluation in zip(chains, await self._evaluate(chains), strict=True):
            self._search.observe(chain, self._task.reward.value(evaluation))
        # An evaluator that answers from memory never waits; others, and a cancellation, must still get their turn.
        await asyncio.sleep(0)
        return None

    def limit_met(self) -> StoppedBy | None:
        """The limit of the budget that is used up; time comes last, for it alone makes a result unrepeatable."""
        budget, spent = self._task.budget, self.spent()
        if budget.simulations is not None and spent.simulations >= budget.simulations:
            return "simulations"
        if budget.layer_evaluations is not None and spent.layer_evaluations >= budget.layer_evaluations:
            return "layer_evaluations"
        if budget.seconds is not None and spent.seconds >= budget.seconds:
            return "seconds"
        return None

    def spent(self) -> Spent:
        """Costs so far."""
        seconds = self._clock() - self._started
        return Spent(self._simulations, self._layer_evaluations, self._layer_evaluations_naive, seconds)

    def progress(self) -> Progress:
        """What a client that watches wants to see."""
        return Progress(self._search.best(), tuple(self._search.pareto()), self.spent())

    async def finish(self, stopped_by: StoppedBy) -> Result:
        """Certify the winner and write the result."""
        best = await self._certify()
        return Result(
            full=self.full,
            best=best,
            pareto=tuple(self._search.pareto()),
            stats=self.spent(),
            stopped_by=stopped_by,
            oracle=self._task.reward.oracle,
            deterministic=stopped_by != "seconds",
        )

    async def _certify(self) -> Outcome:
        """The best chain that keeps its promise when run alone, or the full chain if none of the best does."""
        for _ in range(_MAX_CERTIFICATIONS):
            found = self._search.best()
            if found.reward <= 0 or found.chain == self.full.chain:
                break
            answer = await self._answer(found.chain)
            if self._task.reward.certifies(answer, self._expected):
                return Outcome(found.chain, found.reward, answer, certified=True)
            self._search.reject(found.chain)
        return self.full

    def _leaves(self) -> int:
        limit = self._task.budget.simulations
        if limit is None:
            return self._task.leaf_batch
        return min(self._task.leaf_batch, limit - self._simulations)

    async def _evaluate(self, chains: list[Chain]) -> Sequence[Evaluation]:
        evaluations = await self._evaluator.evaluate(chains, self._expected)
        self._simulations += len(chains)
        self._layer_evaluations += sum(one.layer_evaluations for one in evaluations)
        self._layer_evaluations_naive += sum(one.layer_evaluations_naive for one in evaluations)
        return evaluations

    async def _answer(self, chain: Chain) -> Answer:
        answer = await self._evaluator.answer(chain)
        self._layer_evaluations += answer.layer_evaluations
        self._layer_evaluations_naive += answer.layer_evaluations
        return answer
