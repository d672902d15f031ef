"""One loaded model as routes see it: chains in, answers out. No HTTP, no runtime names."""

import asyncio
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from models.artifact import Manifest
from models.chain import Chain
from models.errors import ChainError, GroupLostError, OverloadError
from service.backends.protocol import Backend
from service.engine.batcher import Batcher
from service.engine.cache import ResponseCache, key_of
from service.engine.degrade import Degrade, Ladder
from service.engine.queue import Limits, QueueLimits
from service.engine.shared import SharedAnswer, SharedSample, SharedWork
from service.engine.terms import current_terms
from service.engine.work import Generated, GenerateWork, TensorWork, Work
from service.metrics import ModelMetrics

# Every layer once; and what is remembered for this input, which a route looks up before the engine sees it.
FULL, MEMORY = "full", "memory"
# Who waits for room looks again no sooner than this.
_LEAST_PAUSE_S = 0.05
# What a request may say of a chain: the text form or "full", the layers, or one of these per input.
ChainValue: TypeAlias = str | Sequence[int] | Sequence[str | Sequence[int]]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one model; `max_chain_length` is in visits, `search_bytes` is for one search.

    The verifier is what searches may ask about answers: an endpoint or none, seconds per answer, tries after one.
    With a ladder requests for the full chain get cheaper ones while too much waits.
    """

    batch: Limits
    queue: QueueLimits
    max_chain_length: int
    search_bytes: int
    verifier_url: str | None = None
    verifier_timeout_s: float = 10.0
    verifier_max_retries: int = 2
    ladder: Ladder | None = None
    response_cache_bytes: int = 0


class Engine:
    """A backend behind its queue. Create and close it on the event loop's thread; await its work there."""

    def __init__(self, manifest: Manifest, backend: Backend, limits: EngineLimits, metrics: ModelMetrics) -> None:
        self.manifest, self.limits, self.metrics = manifest, limits, metrics
        self.num_layers = manifest.num_layers
        self.full = Chain.full(self.num_layers)  # every layer once; no visits where the model is served whole
        self._batcher = Batcher(backend, metrics, limits.batch, limits.queue)
        self._is_patient = False
        self._cache = ResponseCache(limits.response_cache_bytes) if limits.response_cache_bytes else None
        self._degrade = Degrade(len(limits.ladder.chains)) if limits.ladder else None
        metrics.watch(self._batcher, backend.num_pages)
        if limits.ladder:
            metrics.watch_degrade(self._degrade_step)
        if (cache := self._cache) is not None:
            metrics.watch_cache(lambda: cache.num_bytes)

    def chains(self, value: ChainValue, count: int) -> tuple[Chain, ...]:
        """The chain of each of `count` inputs. Raises ChainError naming the visit, the value and the limit."""
        if value == FULL:
            return (self.full,) * count
        if isinstance(value, str) or not value or all(isinstance(layer, int) for layer in value):
            return (self._chain(value),) * count  # type: ignore[arg-type]
        if len(value) != count:
            raise ChainError(f"{len(value)} chains came with {count} inputs; send one chain, or one per input")
        return tuple(self._chain(one) for one in value)  # type: ignore[arg-type]

    def affordable_chains(self, value: ChainValue, count: int) -> tuple[Chain, ...]:
        """The chains that `count` inputs get: those asked for, or while too much waits a cheaper one for "full".

        What the request is told notes it. Raises ChainError as `chains` does.
        """
        step = self._degrade_step() if value == FULL else 0
        if not step or self.limits.ladder is None:
            return self.chains(value, count)
        chain = self.limits.ladder.chains[step - 1]
        self.metrics.observe_degraded(step, count)
        if told := current_terms().told:
            told.degraded = chain.format()
        return (chain,) * count

    def within(self, depth: float) -> tuple[int, ...]:
        """The layers that the static rule keeps of a depth. Raises ChainError."""
        self._check_layered("depth")
        return Chain.of_depth(self.num_layers, depth).layers

    def _degrade_step(self) -> int:
        if self._degrade is None or self.limits.ladder is None:
            return 0
        return self._degrade.step(self.limits.ladder.pressure(*self._batcher.pressure))

    @property
    def trouble(self) -> GroupLostError | None:
        """Why nothing can be run, if nothing can."""
        try:
            self._batcher.check()
        except GroupLostError as error:
            return error
        return None

    async def close(self) -> None:
        """Answer what was accepted, then free the model."""
        await asyncio.to_thread(self._batcher.close)
        self.metrics.close()

    async def explore(self, sample: SharedSample, chains: Sequence[Chain]) -> SharedAnswer:
        """Outputs of one sample along each chain, behind all other work in the queue."""
        answer: SharedAnswer
        (answer,) = await self.run([SharedWork(future=new_future(), sample=sample, chains=tuple(chains))])
        return answer

    async def run(self, works: Sequence[Work]) -> list[Any]:
        """Queue the samples of one request and wait for all. If the caller is cancelled, they leave the batch.

        Raises DeadlineError once the request's time is over; then they leave too.
        """
        if self._cache is None or not works:
            return await self._run(works)
        return await self._recall_or_run(works, self._cache)

    async def _recall_or_run(self, works: Sequence[Work], cache: ResponseCache) -> list[Any]:
        keys = [key_of(work) for work in works]
        found = [key and cache.get(key) for key in keys]
        if isinstance(works[0], TensorWork) and not all(found):  # rows of one request are answered as one
            found = [None] * len(works)
        for work, answer in zip(works, found, strict=True):
            if isinstance(answer, Generated) and isinstance(work, GenerateWork) and work.on_choice:
                for choice in answer.choices:
                    work.on_choice(choice)
        missing = [place for place, answer in enumerate(found) if not answer]
        rows = [0 if key is None else work.num_rows for key, work in zip(keys, works, strict=True)]
        self.metrics.observe_cache(sum(rows), sum(rows[place] for place in missing))
        if told := works[0].terms.told:
            told.cached += len(works) - len(missing)
        answers: list[Any] = list(found)
        for place, answer in zip(missing, await self._run([works[place] for place in missing]), strict=True):
            answers[place] = answer
            if key := keys[place]:
                cache.put(key, answer)
        return answers

    async def _run(self, works: Sequence[Work]) -> list[Any]:
        if not works:
            return []
        await self._submit(works)
        alarm = _expire_later(works)
        try:
            if len(works) == 1:  # gathering costs as much as a small model
                return [await works[0].future]
            return await asyncio.gather(*(work.future for work in works))
        except BaseException as error:
            self._batcher.withdraw(works)
            self.metrics.observe_failure(works, _cause(works, error))
            raise
        finally:
            if alarm:
                alarm.cancel()
            for work in works:
                work.future.cancel()

    def patient(self) -> Self:
        """The same model for work nobody waits for at a socket: it waits for room in the queue instead of failing."""
        twin = copy.copy(self)
        twin._is_patient = True
        return twin

    async def _submit(self, works: Sequence[Work]) -> None:
        while True:
            try:
                return self._batcher.submit(works)
            except OverloadError as error:
                if not self._is_patient:
                    self.metrics.observe_failure(works, error)
                    raise
                await asyncio.sleep(max(error.retry_after_s, _LEAST_PAUSE_S))

    def _chain(self, value: str | Sequence[int]) -> Chain:
        if value == FULL:
            return self.full
        if value == MEMORY:
            raise ChainError("chain 'memory' is not known here; send 'full', or the layers")
        self._check_layered("chain")
        chain = Chain.parse(value) if isinstance(value, str) else Chain(tuple(value))
        return chain.check(self.num_layers, self.limits.max_chain_length)

    def _check_layered(self, field: str) -> None:
        if not self.num_layers:
            raise ChainError(
                f"model {self.manifest.name!r} is served whole and has no layers to choose; leave {field!r} out"
            )


def _expire_later(works: Sequence[Work]) -> asyncio.TimerHandle | None:
    """Answer whatever is not answered when the time of the request is over."""
    timeout_s = works[0].terms.timeout_s
    if timeout_s == math.inf:
        return None
    left_s = works[0].terms.deadline - time.perf_counter()
    return asyncio.get_running_loop().call_later(left_s, _expire, works)


def _cause(works: Sequence[Work], error: BaseException) -> BaseException:
    """What ended the works: of several parts of one request, the first whose time is over cancels the others."""
    is_late = isinstance(error, asyncio.CancelledError) and time.perf_counter() >= works[0].terms.deadline
    return works[0].too_late() if is_late else error


def _expire(works: Sequence[Work]) -> None:
    for work in works:
        if not work.future.done():
            work.future.set_exception(work.too_late())


def new_future() -> asyncio.Future[object]:
    """A future of the running event loop."""
    return asyncio.get_running_loop().create_future()
