"""The anytime search of one sample: propose, evaluate, observe, certify. Knows the model only as an evaluator."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from models.chain import Chain
from service.cola.evaluator import Answer, Evaluator
from service.cola.mcts import Search
from service.cola.released import ReleasedSearch
from service.cola.reward import Verdict
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
        stopped_by = run.goal_met() or run.limit_met() or await run.round()
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
        search = ReleasedSearch if task.mcts.walk == "released" else Search
        self._search = search(task.num_layers, task.space, task.mcts, task.seed)

    async def begin(self) -> None:
        """Run the full chain alone, then observe it as the first simulation."""
        [chain] = self._search.propose(1)
        answer = await self._answer(chain)
        self._expected = self._task.reward.expected(answer, self._task.target)
        [verdict] = await self._judge([chain], answer)
        self._search.observe(chain, verdict.reward)
        if self._task.mcts.prior:
            self._search.inform(self._evaluator.influence)
        certified = self._keeps_promise(chain, answer) and self._evaluator.is_exact
        self.full = Outcome(chain, verdict.reward, answer, certified)

    async def round(self) -> StoppedBy | None:
        """Evaluate and observe one batch of leaves; says so when there are none left."""
        chains = self._search.propose(self._leaves())
        if not chains:
            return "exhausted"
        for chain, verdict in zip(chains, await self._judge(chains), strict=True):
            self._search.observe(chain, verdict.reward)
        # An evaluator that answers from memory never waits; others, and a cancellation, must still get their turn.
        await asyncio.sleep(0)
        return None

    def goal_met(self) -> StoppedBy | None:
        """What the budget asks to stop at, once it is reached."""
        stop, reward, best = self._task.budget.stop, self._task.reward, self._search.best()
        if stop is None or reward.ceiling is None or best.reward < reward.ceiling:
            return None
        if stop == "proof":
            return "proof" if self._search.has_no_shorter() else None
        return None if reward.holds_for_full and best.chain == self.full.chain else "first"

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
        reward, task = self._task.reward, self._task
        self._search.revise(reward.revised())
        best = await self._certify()
        return Result(
            full=self.full,
            best=best,
            pareto=tuple(self._search.pareto()),
            stats=self.spent(),
            stopped_by=stopped_by,
            oracle=reward.oracle,
            deterministic=stopped_by != "seconds" and reward.deterministic,
            top=tuple(self._search.top(task.top_k)),
            tree=tuple(self._search.tree(task.tree_nodes)),
        )

    async def _certify(self) -> Outcome:
        """The best chain that keeps its promise when run alone, or the full chain if none of the best does."""
        for _ in range(_MAX_CERTIFICATIONS):
            found = self._search.best()
            if found.reward <= 0 or found.chain == self.full.chain:
                break
            answer = await self._answer(found.chain)
            if self._keeps_promise(found.chain, answer):
                return Outcome(found.chain, found.reward, answer, certified=self._evaluator.is_exact)
            self._search.reject(found.chain)
        return self.full

    def _keeps_promise(self, chain: Chain, answer: Answer) -> bool:
        return self._task.reward.certifies(chain, answer, self._expected)

    def _leaves(self) -> int:
        limit = self._task.budget.simulations
        if limit is None:
            return self._task.leaf_batch
        return min(self._task.leaf_batch, limit - self._simulations)

    async def _judge(self, chains: list[Chain], ran: Answer | None = None) -> Sequence[Verdict]:
        verdicts = await self._task.reward.judge(self._evaluator, chains, self._expected, ran)
        self._simulations += len(chains)
        self._layer_evaluations += sum(one.layer_evaluations for one in verdicts)
        self._layer_evaluations_naive += sum(one.layer_evaluations_naive for one in verdicts)
        return verdicts

    async def _answer(self, chain: Chain) -> Answer:
        answer = await self._evaluator.answer(chain)
        self._layer_evaluations += answer.layer_evaluations
        self._layer_evaluations_naive += answer.layer_evaluations
        return answer
