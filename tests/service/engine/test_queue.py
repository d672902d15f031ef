"""The line in front of a model: bounded, first in first out in each lane, and exact in what it counts."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import LengthError, OverloadError
from service.engine.prefix import PrefixCache
from service.engine.queue import Limits, Queue, QueueLimits
from service.engine.sampling import Sampling
from service.engine.shared import SharedSample, SharedWork
from service.engine.work import GenerateWork, ScoreWork, TensorWork, Work

CHAIN = Chain((0,))
WIDE = QueueLimits(1000, 10_000, 100_000)
Futures = Callable[[], "asyncio.Future[object]"]


@pytest.fixture(scope="module")
def future() -> Iterator[Futures]:
    loop = asyncio.new_event_loop()
    yield loop.create_future
    loop.close()


def score(future: Futures, num_tokens: int = 4) -> ScoreWork:
    return ScoreWork(future=future(), token_ids=(1,) * num_tokens, num_targets=1, chain=CHAIN)


def search(future: Futures, num_rows: int = 1) -> SharedWork:
    sample = SharedSample({"token_ids": np.ones((1, 8), np.int64)}, PrefixCache(0), length=4)
    return SharedWork(future=future(), sample=sample, chains=(CHAIN,) * num_rows)


def tensor(future: Futures, num_rows: int = 1) -> TensorWork:
    return TensorWork(future=future(), inputs={"x": np.zeros((num_rows, 1))}, chains=(CHAIN,) * num_rows)


def prompt(future: Futures, num_tokens: int = 4) -> GenerateWork:
    return GenerateWork(
        future=future(),
        prompt=(1,) * num_tokens,
        chain=CHAIN,
        sampling=Sampling(),
        eos_token_ids=(),
        max_tokens=100,
        text_of=str,
    )


def counts(queue: Queue) -> tuple[int, int, int]:
    return len(queue), queue.num_rows, queue.num_tokens


@pytest.mark.parametrize(
    ("limits", "unit"),
    [
        (QueueLimits(3, 100, 100), "samples"),
        (QueueLimits(100, 3, 100), "rows"),
        (QueueLimits(100, 100, 15), "tokens"),
    ],
    ids=["requests", "rows", "tokens"],
)
def test_full_queue_refuses_a_request_as_a_whole(limits: QueueLimits, unit: str, future: Futures) -> None:
    queue = Queue(limits)
    queue.put([score(future), prompt(future)], retry_after_s=1.0)
    before = counts(queue)
    with pytest.raises(OverloadError, match=unit) as raised:
        queue.put([score(future), score(future)], retry_after_s=2.5)
    assert raised.value.retry_after_s == 2.5
    assert counts(queue) == before
    queue.put([score(future)], retry_after_s=1.0)
    assert counts(queue) == (3, 3, 12)


def test_request_larger_than_an_empty_queue_is_too_long(future: Futures) -> None:
    queue = Queue(QueueLimits(100, 3, 100))
    with pytest.raises(LengthError, match="the request has 4 rows and the queue takes at most 3"):
        queue.put([tensor(future, num_rows=4)], retry_after_s=1.0)
    assert counts(queue) == (0, 0, 0)


def test_search_waits_behind_everything_of_its_kind(future: Futures) -> None:
    queue = Queue(WIDE)
    behind, first, second = search(future), score(future), tensor(future)
    queue.put([behind], 1.0)
    queue.put([first, second], 1.0)
    assert queue.take(Limits(100, 1000)) == [first, second]
    assert queue.take(Limits(100, 1000)) == []
    assert queue.take_search(Limits(100, 1000)) == [behind]


def test_batch_is_bounded_in_rows_and_in_tokens_with_padding(future: Futures) -> None:
    queue = Queue(WIDE)
    works = [tensor(future, 3), tensor(future, 3), tensor(future, 3)]
    queue.put(works, 1.0)
    assert queue.take(Limits(max_rows=6, max_tokens=1000)) == works[:2]
    assert queue.take(Limits(max_rows=6, max_tokens=1000)) == works[2:]
    ragged = [score(future, 2), score(future, 10), score(future, 2)]
    queue.put(ragged, 1.0)
    assert queue.take(Limits(max_rows=6, max_tokens=29)) == ragged[:2]  # three rows of ten would be 30
    assert queue.take(Limits(max_rows=6, max_tokens=29)) == ragged[2:]


def test_work_larger_than_a_batch_goes_alone(future: Futures) -> None:
    queue = Queue(WIDE)
    works = [tensor(future, 50), tensor(future, 1)]
    queue.put(works, 1.0)
    assert queue.take(Limits(8, 8)) == works[:1]
    assert queue.take(Limits(8, 8)) == works[1:]


def test_abandoned_work_leaves_every_lane(future: Futures) -> None:
    queue = Queue(WIDE)
    left = [score(future), search(future), prompt(future), tensor(future, 5)]
    stay = [score(future), search(future), prompt(future)]
    queue.put([*left, *stay], 1.0)
    for work in left:
        work.future.cancel()
    queue.drop_abandoned()
    assert counts(queue) == (3, 3, 12)
    assert [queue.take_prompt(), *queue.take(Limits(9, 99)), *queue.take_search(Limits(9, 99))] == [
        stay[2],
        stay[0],
        stay[1],
    ]
    assert counts(queue) == (0, 0, 0)


@dataclass
class Model:
    """What a queue holds, as three plain lists."""

    forward: list[Work] = field(default_factory=list)
    search: list[Work] = field(default_factory=list)
    prompts: list[Work] = field(default_factory=list)

    @property
    def lanes(self) -> tuple[list[Work], ...]:
        return self.forward, self.search, self.prompts

    def counts(self) -> tuple[int, int, int]:
        works = [work for lane in self.lanes for work in lane]
        return len(works), sum(work.num_rows for work in works), sum(work.num_tokens for work in works)


kinds = st.sampled_from(["score", "tensor", "search", "prompt"])
actions = st.one_of(
    st.tuples(st.just("put"), st.lists(st.tuples(kinds, st.integers(1, 9)), min_size=1, max_size=4)),
    st.tuples(st.just("take"), st.tuples(st.integers(1, 9), st.integers(1, 40))),
    st.tuples(st.just("take_prompt"), st.none()),
    st.tuples(st.just("leave"), st.integers(0, 20)),
)


@given(st.lists(actions, max_size=30), st.tuples(st.integers(1, 8), st.integers(1, 40), st.integers(1, 60)))
def test_queue_behaves_like_three_lists(
    future: Futures, made: list[tuple[str, object]], bounds: tuple[int, int, int]
) -> None:
    queue, model, limits = Queue(QueueLimits(*bounds)), Model(), QueueLimits(*bounds)
    for name, value in made:
        if name == "put":
            put(queue, model, limits, [new_work(future, kind, size) for kind, size in value])  # type: ignore[attr-defined]
        elif name == "take":
            take(queue, model, Limits(*value))  # type: ignore[misc]
        elif name == "take_prompt" and model.prompts:
            assert queue.take_prompt() is model.prompts.pop(0)
        elif name == "leave":
            leave(queue, model, int(value))  # type: ignore[call-overload]
        assert counts(queue) == model.counts()
    while model.forward or model.search:
        take(queue, model, Limits(3, 20))
    while model.prompts:
        assert queue.take_prompt() is model.prompts.pop(0)
    assert counts(queue) == (0, 0, 0)


def new_work(future: Futures, kind: str, size: int) -> Work:
    if kind == "prompt":
        return prompt(future, size)
    return {"tensor": tensor, "search": search, "score": score}[kind](future, size)


def put(queue: Queue, model: Model, limits: QueueLimits, works: list[Work]) -> None:
    wanted = Model(forward=works).counts()
    room = (limits.max_requests, limits.max_rows, limits.max_tokens)
    if any(more > limit for more, limit in zip(wanted, room, strict=True)):
        with pytest.raises((LengthError, OverloadError)):
            queue.put(works, 1.0)
        return
    if any(has + more > limit for has, more, limit in zip(model.counts(), wanted, room, strict=True)):
        with pytest.raises(OverloadError):
            queue.put(works, 1.0)
        return
    queue.put(works, 1.0)
    for work in works:
        lane = (
            model.prompts
            if isinstance(work, GenerateWork)
            else model.search
            if isinstance(work, SharedWork)
            else model.forward
        )
        lane.append(work)


def take(queue: Queue, model: Model, limits: Limits) -> None:
    assert queue.is_urgent == bool(model.forward or model.prompts)
    lane: list[Any] = model.forward or model.search
    taken: list[Any] = queue.take(limits) or queue.take_search(limits)
    assert taken == lane[: len(taken)]
    assert bool(taken) == bool(lane)
    assert fits(taken, limits)
    assert len(taken) == len(lane) or not fits(lane[: len(taken) + 1], limits)
    del lane[: len(taken)]


def fits(works: list[Work], limits: Limits) -> bool:
    if len(works) <= 1:
        return True
    rows, longest = sum(work.num_rows for work in works), max(work.num_tokens // work.num_rows for work in works)
    return rows <= limits.max_rows and rows * longest <= limits.max_tokens


def leave(queue: Queue, model: Model, place: int) -> None:
    works = [work for lane in model.lanes for work in lane]
    if works:
        gone = works[place % len(works)]
        gone.future.cancel()
        queue.drop_abandoned()
        for lane in model.lanes:
            lane[:] = [work for work in lane if work is not gone]
