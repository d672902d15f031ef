"""Tensor rows that are soon done run on the event loop itself; everything else on the device thread."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifact import Manifest
from models.chain import Chain
from models.errors import BackendError
from service.backends.open import open_backend
from service.backends.protocol import Array, Backend, Carry, Rows
from service.engine.batcher import Batcher
from service.engine.engine import new_future
from service.engine.prefix import PrefixCache
from service.engine.queue import Limits, QueueLimits
from service.engine.shared import SharedSample, SharedWork
from service.engine.work import Tensors, TensorWork

FULL, SHORT = Chain.full(4), Chain((0, 3))
WAIT_S = 20.0


class Watched:
    """A backend that notes who called it with how many rows, and may take its time or fail."""

    def __init__(self, inner: Backend, pass_s: float = 0.0) -> None:
        self._inner, self._pass_s = inner, pass_s
        self.passes: list[tuple[int, int]] = []  # thread, rows
        self.is_closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        self.is_closed = True
        self._inner.close()

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        (array,) = inputs.values()
        self.passes.append((threading.get_ident(), len(array)))
        time.sleep(self._pass_s)
        if (array < 0).any():
            raise RuntimeError("a negative number")
        return self._inner.embed(inputs, rows)


class Uncounted:
    """Counts nothing."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None: ...


def row(value: float, chain: Chain = FULL) -> TensorWork:
    return TensorWork(
        future=new_future(), inputs={"features": np.asarray([[value, 1, 2]], np.float32)}, chains=(chain,)
    )


async def ask(batcher: Batcher, *works: TensorWork) -> list[Any]:
    """Each unit as a request of its own, all in one turn of the event loop."""
    for work in works:
        batcher.submit([work])
    return await asyncio.wait_for(asyncio.gather(*(work.future for work in works), return_exceptions=True), WAIT_S)


def logits(answer: object) -> list[Any]:
    assert isinstance(answer, Tensors)
    return answer.outputs["logits"].tolist()


def on(manifest: Manifest, test: Callable[[Batcher, Watched], Awaitable[None]], pass_s: float = 0.0) -> None:
    backend = Watched(open_backend(manifest, Path(), "fake"), pass_s)
    batcher = Batcher(backend, Uncounted(), Limits(8, 512), QueueLimits(100, 100, 10_000))

    async def run() -> None:
        try:
            await test(batcher, backend)
        finally:
            await asyncio.to_thread(batcher.close)

    asyncio.run(run())


async def known(batcher: Batcher, backend: Watched) -> None:
    """Let the batcher learn how long rows take."""
    for value in range(10):
        await ask(batcher, row(value))
    backend.passes.clear()


def test_rows_of_one_turn_run_together_on_the_event_loop_and_equal_each_alone(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        alone = [logits(*await ask(batcher, row(value, chain))) for value, chain in ((1, FULL), (2, SHORT), (3, FULL))]
        await known(batcher, backend)
        together = await ask(batcher, row(1), row(2, SHORT), row(3))
        assert backend.passes == [(threading.get_ident(), 3)]
        assert [logits(answer) for answer in together] == alone

    on(tensor_manifest, test)


def test_first_rows_run_on_the_device_thread(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await ask(batcher, row(1))
        ((thread, _),) = backend.passes
        assert thread != threading.get_ident()

    on(tensor_manifest, test)


def test_slow_model_never_holds_the_event_loop(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        await ask(batcher, row(1), row(2))
        assert threading.get_ident() not in {thread for thread, _ in backend.passes}

    on(tensor_manifest, test, pass_s=0.002)


def test_more_rows_than_a_batch_are_all_answered(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        answers = await ask(batcher, *(row(value) for value in range(50)))
        assert all(isinstance(answer, Tensors) for answer in answers)
        assert max(rows for _, rows in backend.passes) <= 8
        assert batcher.num_waiting_rows == 0

    on(tensor_manifest, test)


def test_search_beside_quick_rows_is_answered_by_the_device_thread(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        inputs = {"features": np.asarray([[1, 1, 2]], np.float32)}
        search = SharedWork(
            future=new_future(), sample=SharedSample(inputs, PrefixCache(1 << 20)), chains=(FULL, SHORT)
        )
        batcher.submit([search])
        await ask(batcher, row(1))
        found = await asyncio.wait_for(search.future, WAIT_S)
        assert [one["logits"].tolist() for one in found.outputs] == [
            logits(*await ask(batcher, row(1, chain)))[0] for chain in (FULL, SHORT)
        ]

    on(tensor_manifest, test)


def test_only_the_row_at_fault_fails(tensor_manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        good, bad, other = await ask(batcher, row(1), row(-1), row(2))
        assert isinstance(bad, BackendError)
        assert logits(good) == logits(*await ask(batcher, row(1)))
        assert logits(other) == logits(*await ask(batcher, row(2)))

    on(tensor_manifest, test)


def test_row_whose_client_left_in_the_same_turn_reaches_no_backend(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        gone, stays = row(1), row(2)
        batcher.submit([gone])
        gone.future.cancel()
        await ask(batcher, stays)
        assert [rows for _, rows in backend.passes] == [1]

    on(tensor_manifest, test)


def test_rows_that_come_while_the_device_thread_works_are_taken_by_it(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        backend._pass_s = 0.2
        with batcher._device:  # as the device thread holds it during a turn
            batcher.submit([waiting := row(1)])
            await asyncio.sleep(0.01)
            assert not waiting.future.done()
        answer = await asyncio.wait_for(waiting.future, WAIT_S)
        assert isinstance(answer, Tensors)
        assert threading.get_ident() not in {thread for thread, _ in backend.passes}

    on(tensor_manifest, test)


def test_model_is_not_closed_under_a_batch_on_the_event_loop(tensor_manifest: Manifest) -> None:
    async def test(batcher: Batcher, backend: Watched) -> None:
        await known(batcher, backend)
        closing = threading.Thread(target=batcher.close)
        with batcher._device:  # as the event loop holds it during a batch
            closing.start()
            closing.join(0.2)
            assert not backend.is_closed
        closing.join(WAIT_S)
        assert backend.is_closed

    on(tensor_manifest, test)
