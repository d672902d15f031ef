"""One loaded model as routes see it: chains in, answers out. No HTTP, no runtime names."""

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from models.artifact import Manifest
from models.chain import Chain
from models.errors import ChainError, OverloadError
from service.backends.protocol import Backend
from service.engine.batcher import Batcher
from service.engine.queue import Limits, QueueLimits
from service.engine.shared import SharedAnswer, SharedSample, SharedWork
from service.engine.work import Work
from service.metrics import ModelMetrics

# Every layer once; and what is remembered for this input, which a route looks up before the engine sees it.
FULL, MEMORY = "full", "memory"
# What a request may say of a chain: the text form or "full", the layers, or one of these per input.
ChainValue: TypeAlias = str | Sequence[int] | Sequence[str | Sequence[int]]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one model; `max_chain_length` is in visits, `search_bytes` is for one search.

    The verifier is what searches may ask about answers: an endpoint or none, seconds per answer, tries after one.
    """

    batch: Limits
    queue: QueueLimits
    max_chain_length: int
    search_bytes: int
    verifier_url: str | None = None
    verifier_timeout_s: float = 10.0
    verifier_max_retries: int = 2


class Engine:
    """A backend behind its queue. Create and close it on the event loop's thread; await its work there."""

    def __init__(self, manifest: Manifest, backend: Backend, limits: EngineLimits, metrics: ModelMetrics) -> None:
        self.manifest, self.limits, self.metrics = manifest, limits, metrics
        self.num_layers = manifest.num_layers
        self.full = Chain.full(self.num_layers)  # every layer once; no visits where the model is served whole
        self._batcher = Batcher(backend, metrics, limits.batch, limits.queue)
        self._is_patient = False
        metrics.watch(self._batcher, backend.num_slots)

    def chains(self, value: ChainValue, count: int) -> tuple[Chain, ...]:
        """The chain of each of `count` inputs. Raises ChainError naming the visit, the value and the limit."""
        if value == FULL:
            return (self.full,) * count
        if isinstance(value, str) or not value or all(isinstance(layer, int) for layer in value):
            return (self._chain(value),) * count  # type: ignore[arg-type]
        if len(value) != count:
            raise ChainError(f"{len(value)} chains came with {count} inputs; send one chain, or one per input")
        return tuple(self._chain(one) for one in value)  # type: ignore[arg-type]

    def within(self, depth: float) -> tuple[int, ...]:
        """The layers that the static rule keeps of a depth. Raises ChainError."""
        self._check_layered("depth")
        return Chain.of_depth(self.num_layers, depth).layers

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
        """Queue the samples of one request and wait for all. If the caller is cancelled, they leave the batch."""
        await self._submit(works)
        try:
            return (
                [await works[0].future] if len(works) == 1 else await asyncio.gather(*(work.future for work in works))
            )
        finally:
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
                    raise
                await asyncio.sleep(error.retry_after_s)

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


def new_future() -> asyncio.Future[object]:
    """A future of the running event loop."""
    return asyncio.get_running_loop().create_future()
