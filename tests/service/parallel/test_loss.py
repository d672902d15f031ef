"""What an engine does when its ranks are lost: everybody gets an answer, and nothing of before is believed again."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from models.artifact import Manifest
from models.chain import Chain
from models.errors import GroupLostError
from service.backends.arrays import HostArrays
from service.backends.fake import open_fake
from service.backends.parts import LanguageBackend
from service.engine.batcher import Batcher
from service.engine.engine import new_future
from service.engine.prefix import PrefixCache
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Choice, Sampling
from service.engine.shared import SharedWork, text_sample
from service.engine.work import Generated, GenerateWork, ScoreWork, Work
from tests.service.parallel.loopback import Loopback, remote

WAIT_S = 20.0
FULL = Chain((0, 1, 2, 3))
TEXT = (1, 2, 3, 4, 5, 6, 7, 8, 9)  # two pages and a bit


class Uncounted:
    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


def rank_of(manifest: Manifest) -> LanguageBackend:
    assert manifest.language is not None
    return LanguageBackend(open_fake(manifest), manifest.language, HostArrays(), 64, 4)


def on_ranks(manifest: Manifest, test: Callable[[Batcher, Loopback], Awaitable[None]]) -> None:
    """Run a test on an event loop with a batcher over ranks that can be lost."""
    backend, ranks = remote(manifest, rank_of(manifest))
    batcher = Batcher(backend, Uncounted(), Limits(max_rows=4, max_tokens=256), QueueLimits(100, 100, 10_000))

    async def run() -> None:
        try:
            await test(batcher, ranks)
            assert (batcher.num_waiting, batcher.num_running, batcher.num_pages_used) == (0, 0, 0)
        finally:
            await asyncio.to_thread(batcher.close)

    asyncio.run(run())


def prompt(on_choice: Callable[[Choice], None] | None = None, tokens: tuple[int, ...] = TEXT) -> GenerateWork:
    return GenerateWork(
        future=new_future(),
        prompt=tokens,
        chain=FULL,
        sampling=Sampling(max_new_tokens=12),
        eos_token_ids=(),
        max_tokens=48,
        text_of=str,
        on_choice=on_choice,
    )


async def answers(batcher: Batcher, *works: Work) -> list[Any]:
    batcher.submit(works)
    return await asyncio.wait_for(asyncio.gather(*(work.future for work in works), return_exceptions=True), WAIT_S)


def some_of_each_kind(lose: Callable[[Choice], None]) -> list[Work]:
    """More than runs at once, the first of which has the ranks lost while it is generated."""
    prompts = [prompt(lose), *(prompt(tokens=(token, 1, 2)) for token in range(1, 9))]
    scores = [ScoreWork(future=new_future(), token_ids=TEXT, num_targets=2, chain=FULL) for _ in range(3)]
    searches = [
        SharedWork(future=new_future(), sample=text_sample(TEXT, 2, PrefixCache(1 << 20)), chains=(FULL, Chain((0, 2))))
        for _ in range(3)
    ]
    return [*prompts, *scores, *searches]


def test_everything_accepted_is_answered_when_the_ranks_are_lost(manifest: Manifest) -> None:
    async def test(batcher: Batcher, ranks: Loopback) -> None:
        told: list[Choice] = []

        def lose(choice: Choice) -> None:
            told.append(choice)
            if len(told) == 3:
                ranks.lose()

        got = await answers(batcher, *some_of_each_kind(lose))
        lost = [one for one in got if isinstance(one, GroupLostError)]
        assert len(lost) >= 8
        assert {type(one).__name__ for one in got} <= {"GroupLostError", "Score", "SharedAnswer"}
        with pytest.raises(GroupLostError):
            batcher.submit([prompt()])
        ranks.come_back(2)

    on_ranks(manifest, test)


@pytest.mark.parametrize("is_idle", [True, False])
def test_keys_and_values_of_earlier_ranks_are_forgotten(is_idle: bool, manifest: Manifest) -> None:
    """Ranks that come back remember nothing: whoever trusted the pages of before would read zeros."""

    async def test(batcher: Batcher, ranks: Loopback) -> None:
        (first,) = await answers(batcher, prompt())
        assert isinstance(first, Generated)
        assert batcher.num_pages_cached > 0
        (again,) = await answers(batcher, prompt())
        assert again.num_cached == 8
        if is_idle:
            ranks.lose()
        else:
            lost = await answers(batcher, prompt(lambda choice: ranks.lose()))
            assert isinstance(lost[0], GroupLostError)
        ranks.backend = rank_of(manifest)
        ranks.come_back(2)
        (after,) = await answers(batcher, prompt())
        assert (after.token_ids, after.num_cached) == (first.token_ids, 0)

    on_ranks(manifest, test)


def test_ranks_that_are_back_before_anybody_noticed_are_new_all_the_same(manifest: Manifest) -> None:
    """The device thread is held up between two steps while ranks go and come: the sequence is lost, not continued."""

    async def test(batcher: Batcher, ranks: Loopback) -> None:
        def replace(choice: Choice) -> None:
            if ranks.epoch == 1:
                ranks.backend = rank_of(manifest)
                ranks.come_back(2)

        (got,) = await answers(batcher, prompt(replace))
        assert isinstance(got, GroupLostError)
        (after,) = await answers(batcher, prompt())
        assert isinstance(after, Generated)

    on_ranks(manifest, test)


def test_search_that_outlives_its_ranks_fails_alone(manifest: Manifest) -> None:
    async def test(batcher: Batcher, ranks: Loopback) -> None:
        sample = text_sample(TEXT, 2, PrefixCache(1 << 20))

        def search(chain: Chain) -> SharedWork:
            return SharedWork(future=new_future(), sample=sample, chains=(chain,))

        await answers(batcher, search(FULL))
        ranks.lose()
        ranks.come_back(2)
        await answers(batcher, prompt())
        stale, healthy = await answers(batcher, search(Chain((0, 1, 3))), prompt())
        assert "lost with the ranks" in str(stale)
        assert isinstance(healthy, Generated)

    on_ranks(manifest, test)


def test_what_waits_while_the_ranks_hang_is_answered_too(manifest: Manifest) -> None:
    async def test(batcher: Batcher, ranks: Loopback) -> None:
        entered, gate = threading.Event(), threading.Event()
        execute = ranks.execute

        def hang(body: bytes) -> Any:
            entered.set()
            gate.wait(WAIT_S)
            ranks.lose()
            raise ranks.lost()

        ranks.execute = hang  # type: ignore[method-assign]
        asking = [asyncio.ensure_future(answers(batcher, prompt()))]
        await asyncio.to_thread(entered.wait, WAIT_S)
        asking.append(asyncio.ensure_future(answers(batcher, *(prompt() for _ in range(10)))))
        while not batcher.num_waiting:
            await asyncio.sleep(0.001)
        gate.set()
        started = time.monotonic()
        for got in await asyncio.gather(*asking):
            assert all(isinstance(one, GroupLostError) for one in got)
        assert time.monotonic() - started < 5.0
        ranks.execute = execute  # type: ignore[method-assign]
        ranks.come_back(2)

    on_ranks(manifest, test)


def test_pass_of_a_batch_is_one_program(manifest: Manifest) -> None:
    async def test(batcher: Batcher, ranks: Loopback) -> None:
        (got,) = await answers(batcher, prompt())
        assert ranks.num_programs == got.num_passes

    on_ranks(manifest, test)
