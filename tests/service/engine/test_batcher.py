"""The device thread: one answer for everything accepted, whatever fails, leaves or floods it."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifact import Manifest
from models.chain import Chain
from models.errors import BackendError, DeadlineError, LengthError, OverloadError, UnavailableError
from service.backends.open import open_backend
from service.backends.protocol import Array, Backend, Carry, Ints, Rows, Selection
from service.engine.batcher import Batcher
from service.engine.engine import new_future
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Sampling
from service.engine.terms import Terms
from service.engine.work import Generated, GenerateWork, Score, ScoreWork, Tensors, TensorWork, Work

FULL = Chain.full(4)
BAD_TOKEN = 99  # outside the vocabulary: no answer holds it
WAIT_S = 20.0


@dataclass
class Wrapped:
    """A backend with a fault: fails on a bad token, loses rows of its answer, or waits at its gate."""

    inner: Backend
    loses_rows: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    is_closed: bool = False
    bad_passes: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def num_layers(self) -> int:
        return self.inner.num_layers

    @property
    def num_pages(self) -> int:
        return self.inner.num_pages

    @property
    def page_size(self) -> int:
        return self.inner.page_size

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Carry:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if any((array == BAD_TOKEN).any() for array in inputs.values()):
            self.bad_passes += 1
            raise RuntimeError("the bad token")
        return self.inner.embed(inputs, rows)

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        return self.inner.layer(index, carry, rows)

    def head(self, carry: Carry, tokens: Ints | None = None) -> dict[str, Array]:
        outputs = self.inner.head(carry, tokens)
        return {name: array[1:] for name, array in outputs.items()} if self.loses_rows else outputs

    def select(self, carry: Carry, rows: Selection) -> Carry:
        return self.inner.select(carry, rows)

    def merge(self, carry: Carry, rows: Selection, part: Carry) -> Carry:
        return self.inner.merge(carry, rows, part)

    def join(self, carries: Sequence[Carry]) -> Carry:
        return self.inner.join(carries)

    def stream(self, carry: Carry) -> Array:
        return self.inner.stream(carry)

    def num_bytes(self, carry: Carry) -> int:
        return self.inner.num_bytes(carry)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Counts:
    """Rows by layer."""

    rows: Counter[int] = field(default_factory=Counter)

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        self.rows[layer] += rows


@dataclass
class Bench:
    """A batcher over a faulty backend."""

    backend: Wrapped
    batcher: Batcher
    counts: Counts

    async def ask(self, *works: Work) -> list[Any]:
        """The answers, errors among them."""
        self.batcher.submit(works)
        return await asyncio.wait_for(asyncio.gather(*(work.future for work in works), return_exceptions=True), WAIT_S)

    async def settle(self) -> None:
        """Wait until nothing waits, runs or holds a slot."""
        end = time.monotonic() + WAIT_S
        while self.batcher.num_waiting or self.batcher.num_running or self.batcher.num_pages_used:
            assert time.monotonic() < end, "the batcher did not come to rest"
            await asyncio.sleep(0.001)
        assert (self.batcher.num_waiting_rows, self.batcher.num_waiting_tokens) == (0, 0)


def on_bench(
    manifest: Manifest,
    test: Callable[[Bench], Awaitable[None]],
    queue: QueueLimits | None = None,
    max_rows: int = 8,
    num_pages: int = 120,
    page_size: int = 16,
) -> Bench:
    """Run a test against a new batcher on an event loop of its own, and close it."""
    inner = open_backend(manifest, Path(), "fake", num_pages=num_pages, page_size=page_size)
    counts, backend = Counts(), Wrapped(inner)
    limits = Limits(max_rows=max_rows, max_tokens=512)
    batcher = Batcher(backend, counts, limits, queue or QueueLimits(100, 100, 10_000))
    bench = Bench(backend, batcher, counts)

    async def run() -> None:
        try:
            await test(bench)
            await bench.settle()
        finally:
            backend.gate.set()
            await asyncio.to_thread(batcher.close)

    asyncio.run(run())
    assert backend.is_closed
    return bench


def prompt(
    *token_ids: int, chain: Chain = FULL, max_new_tokens: int = 6, on_choice: Callable[..., None] | None = None
) -> GenerateWork:
    return GenerateWork(
        future=new_future(),
        prompt=token_ids,
        chain=chain,
        sampling=Sampling(max_new_tokens=max_new_tokens),
        eos_token_ids=(),
        max_tokens=48,
        text_of=str,
        on_choice=on_choice,
    )


def score(*token_ids: int, chain: Chain = FULL) -> ScoreWork:
    return ScoreWork(future=new_future(), token_ids=token_ids, num_targets=2, chain=chain)


def row(*values: float, chain: Chain = FULL) -> TensorWork:
    return TensorWork(future=new_future(), inputs={"features": np.asarray([values], np.float32)}, chains=(chain,))


def test_one_queue_takes_all_kinds_of_work(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        generated, scored = await bench.ask(prompt(1, 2, max_new_tokens=2), score(1, 2, 3))
        assert isinstance(generated, Generated)
        assert isinstance(scored, Score)
        assert generated.timing.queue_s >= 0
        assert scored.timing.compute_s > 0

    bench = on_bench(language_manifest, test)
    assert bench.counts.rows == Counter({layer: 3 for layer in range(4)})


@pytest.mark.parametrize("kind", ["generate", "score"])
def test_row_that_fails_fails_alone(kind: str, language_manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    make: Callable[..., Work] = prompt if kind == "generate" else score
    texts = [(1, 2, 3), (4, BAD_TOKEN, 5), (6, 7), (3, 3, 3, 3)]
    chains = [FULL, FULL, Chain((0, 2)), Chain((1, 1))]

    async def test(bench: Bench) -> None:
        bench.backend.gate.clear()
        first = asyncio.ensure_future(bench.ask(make(1, 2)))  # holds the thread until the others wait together
        await asyncio.to_thread(bench.backend.entered.wait, WAIT_S)
        together = asyncio.ensure_future(
            bench.ask(*(make(*text, chain=chain) for text, chain in zip(texts, chains, strict=True)))
        )
        await asyncio.sleep(0)
        bench.backend.gate.set()
        await first
        answers = await together
        assert isinstance(answers[1], BackendError)
        assert "the bad token" in str(answers[1])
        assert bench.backend.bad_passes == 2  # once among the others, once alone
        for place in (0, 2, 3):
            (alone,) = await bench.ask(make(*texts[place], chain=chains[place]))
            assert told(answers[place]) == told(alone)

    with caplog.at_level(logging.CRITICAL, "fathom.engine"):
        on_bench(language_manifest, test)


def told(answer: Any) -> object:
    """What an answer says, without its timing."""
    return answer.token_ids if isinstance(answer, Generated) else (answer.greedy, answer.logprobs)


def test_tensor_row_that_fails_fails_alone(tensor_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        answers = await bench.ask(row(1, 2, 3), row(1, BAD_TOKEN, 3), row(4, 5, 6, chain=Chain((0,))))
        assert isinstance(answers[1], BackendError)
        (alone,) = await bench.ask(row(4, 5, 6, chain=Chain((0,))))
        assert isinstance(alone, Tensors)
        assert (answers[2].outputs["logits"] == alone.outputs["logits"]).all()

    on_bench(tensor_manifest, test)


def test_client_that_leaves_frees_its_slots_and_hurts_nobody(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        loop, gone = asyncio.get_running_loop(), threading.Event()
        leaver = prompt(1, 2, max_new_tokens=40)
        stayer, waiter = prompt(3, 4, max_new_tokens=20), prompt(5, max_new_tokens=20, chain=Chain((2, 2)))

        def cancel() -> None:
            leaver.future.cancel()
            gone.set()

        def leave(_: object) -> None:
            if len(leaver.choices) == 3:
                loop.call_soon_threadsafe(cancel)
                assert gone.wait(WAIT_S)

        leaver.on_choice = leave
        answers = await bench.ask(leaver, stayer, waiter)
        assert isinstance(answers[0], asyncio.CancelledError)
        await bench.settle()
        assert len(leaver.choices) == 3
        for answer, again in zip(answers[1:], (prompt(3, 4, max_new_tokens=20), waiter_again()), strict=True):
            (alone,) = await bench.ask(again)
            assert told(answer) == told(alone)

    def waiter_again() -> GenerateWork:
        return prompt(5, max_new_tokens=20, chain=Chain((2, 2)))

    on_bench(language_manifest, test)


def test_client_that_leaves_while_waiting_never_reaches_the_backend(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        bench.backend.gate.clear()
        first = asyncio.ensure_future(bench.ask(score(1, 2)))
        await asyncio.to_thread(bench.backend.entered.wait, WAIT_S)
        leaver, stayer = score(1, 2, 3), score(1, 2, 3)
        bench.batcher.submit([leaver, stayer])
        leaver.future.cancel()
        bench.backend.gate.set()
        await first
        assert isinstance(await stayer.future, Score)

    assert on_bench(language_manifest, test).counts.rows[0] == 2


def test_full_queue_refuses_at_once_and_as_a_whole(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        bench.backend.gate.clear()
        first = asyncio.ensure_future(bench.ask(score(1, 2)))
        await asyncio.to_thread(bench.backend.entered.wait, WAIT_S)
        waiting = [score(1, 2), score(1, 2)]
        bench.batcher.submit(waiting)
        with pytest.raises(OverloadError, match="limit of 3") as raised:
            bench.batcher.submit([score(1, 2), score(1, 2)])
        assert raised.value.retry_after_s > 0
        assert bench.batcher.num_waiting == 2
        bench.backend.gate.set()
        await asyncio.gather(first, *(work.future for work in waiting))

    on_bench(language_manifest, test, QueueLimits(3, 100, 1000))


def test_closing_finishes_everything_that_was_accepted(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        bench.backend.gate.clear()
        works = [prompt(1, 2, max_new_tokens=5), score(1, 2, 3), *(prompt(i, max_new_tokens=5) for i in range(1, 12))]
        answers = asyncio.ensure_future(bench.ask(*works))
        await asyncio.to_thread(bench.backend.entered.wait, WAIT_S)
        closing = asyncio.ensure_future(asyncio.to_thread(bench.batcher.close))
        while True:
            try:
                bench.batcher.submit([late := score(1, 2)])
            except UnavailableError:
                break
            works.append(late)
            await asyncio.sleep(0.001)
        bench.backend.gate.set()
        await closing
        assert [type(answer) for answer in await answers] == [Generated, Score, *[Generated] * 11]
        assert all(work.future.done() for work in works)

    on_bench(language_manifest, test)


def test_fault_inside_the_thread_answers_everything_and_the_thread_lives_on(
    language_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(bench: Bench) -> None:
        bench.backend.loses_rows = True
        answers = await bench.ask(prompt(1, 2), prompt(3, 4, chain=Chain((1,))))
        assert [type(answer) for answer in answers] == [BackendError, BackendError]
        await bench.settle()
        bench.backend.loses_rows = False
        (answer,) = await bench.ask(prompt(1, 2))
        assert isinstance(answer, Generated)

    with caplog.at_level(logging.CRITICAL, "fathom.engine"):
        on_bench(language_manifest, test)


def test_fault_of_one_pass_work_is_answered_too(language_manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        bench.backend.loses_rows = True
        answers = await bench.ask(score(1, 2, 3), score(1, 2))
        assert [type(answer) for answer in answers] == [BackendError, BackendError]

    with caplog.at_level(logging.CRITICAL, "fathom.engine"):
        on_bench(language_manifest, test)


def test_callback_that_raises_ends_only_its_own_sequence(language_manifest: Manifest) -> None:
    def raising(_: object) -> None:
        raise ValueError("no listener")

    async def test(bench: Bench) -> None:
        answers = await bench.ask(prompt(1, 2, on_choice=raising), prompt(3, 4))
        assert isinstance(answers[0], BackendError)
        assert isinstance(answers[1], Generated)

    on_bench(language_manifest, test)


def test_crowd_with_few_pages_gets_the_answers_of_everyone_alone(language_manifest: Manifest) -> None:
    def works() -> list[GenerateWork]:
        return [prompt(*range(1, 2 + i % 7), chain=Chain((i % 3, 3, i % 2)), max_new_tokens=5 + i) for i in range(20)]

    async def test(bench: Bench) -> None:
        leaving = works()[:10]
        for place, work in enumerate(leaving):
            work.on_choice = lambda choice, work=work, place=place: (  # type: ignore[misc]
                work.future.get_loop().call_soon_threadsafe(work.future.cancel) if len(work.choices) == place else None
            )
        bench.batcher.submit(leaving)
        answers: list[Generated] = await bench.ask(*works())
        assert sum(answer.num_preemptions for answer in answers) > 0
        assert sum(answer.num_cached for answer in answers) > 0
        for answer, again in zip(answers, works(), strict=True):
            (alone,) = await bench.ask(again)
            assert told(answer) == told(alone)

    on_bench(language_manifest, test, num_pages=60, page_size=2)


def test_sequence_that_could_never_fit_is_refused_at_once(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(LengthError, match="shorten the prompt, the answer or the chain"):
            bench.batcher.submit([prompt(1, 2), prompt(1, 2, chain=Chain((0,) * 30), max_new_tokens=40)])
        assert bench.batcher.num_waiting == 0

    on_bench(language_manifest, test, num_pages=60, page_size=2)


def test_more_sequences_than_rows_and_pages_all_end(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        works = [prompt(1 + i % 16, chain=Chain((i % 4,) * (1 + i % 8))) for i in range(40)]
        answers = await bench.ask(*works)
        assert all(isinstance(answer, Generated) for answer in answers)
        (alone,) = await bench.ask(prompt(1 + 37 % 16, chain=Chain((1,) * 6)))
        assert told(answers[37]) == told(alone)

    on_bench(language_manifest, test)


def test_loop_that_is_gone_stops_nobody(language_manifest: Manifest) -> None:
    async def abandoned(bench: Bench) -> None:
        bench.batcher.submit([prompt(1, 2, max_new_tokens=40), score(1, 2, 3)])

    async def test(bench: Bench) -> None:
        await asyncio.to_thread(lambda: asyncio.run(abandoned(bench)))
        (answer,) = await bench.ask(score(1, 2))
        assert isinstance(answer, Score)

    on_bench(language_manifest, test)


def test_work_past_its_deadline_never_reaches_the_backend(language_manifest: Manifest) -> None:
    async def test(bench: Bench) -> None:
        bench.backend.gate.clear()
        first = asyncio.ensure_future(bench.ask(score(1, 2)))
        await asyncio.to_thread(bench.backend.entered.wait, WAIT_S)
        late, in_time = score(1, 2, 3), score(1, 2, 3)
        late.terms = Terms(arrived_at=time.perf_counter(), timeout_s=0.01)
        answers = asyncio.ensure_future(bench.ask(late, in_time))
        await asyncio.sleep(0.02)
        bench.backend.gate.set()
        await first
        too_late, answer = await answers
        assert isinstance(answer, Score)
        assert isinstance(too_late, DeadlineError)
        assert "more than its 0.01 s" in str(too_late)

    assert on_bench(language_manifest, test).counts.rows[0] == 2
