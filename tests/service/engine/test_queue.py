"""The line in front of a model: bounded, first in first out in each lane, and exact in what it counts."""

import asyncio
import math
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
from service.engine.terms import Terms
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
    queue.put([score(future), prompt(future)])
    before = counts(queue)
    with pytest.raises(OverloadError, match=unit) as raised:
        queue.put([score(future), score(future)])
    assert raised.value.unit == unit
    assert counts(queue) == before
    queue.put([score(future)])
    assert counts(queue) == (3, 3, 12)


def test_request_larger_than_an_empty_queue_is_too_long(future: Futures) -> None:
    queue = Queue(QueueLimits(100, 3, 100))
    with pytest.raises(LengthError, match="the request has 4 rows and the queue takes at most 3"):
        queue.put([tensor(future, num_rows=4)])
    assert counts(queue) == (0, 0, 0)


def test_search_waits_behind_everything_of_its_kind(future: Futures) -> None:
    queue = Queue(WIDE)
    behind, first, second = search(future), score(future), tensor(future)
    queue.put([behind])
    queue.put([first, second])
    assert queue.take(Limits(100, 1000)) == [first, second]
    assert queue.take(Limits(100, 1000)) == []
    assert queue.take_search(Limits(100, 1000)) == [behind]


def test_batch_is_bounded_in_rows_and_in_tokens_with_padding(future: Futures) -> None:
    queue = Queue(WIDE)
    works = [tensor(future, 3), tensor(future, 3), tensor(future, 3)]
    queue.put(works)
    assert queue.take(Limits(max_rows=6, max_tokens=1000)) == works[:2]
    assert queue.take(Limits(max_rows=6, max_tokens=1000)) == works[2:]
    ragged = [score(future, 2), score(future, 10), score(future, 2)]
    queue.put(ragged)
    assert queue.take(Limits(max_rows=6, max_tokens=29)) == ragged[:2]  # three rows of ten would be 30
    assert queue.take(Limits(max_rows=6, max_tokens=29)) == ragged[2:]


def test_work_larger_than_a_batch_goes_alone(future: Futures) -> None:
    queue = Queue(WIDE)
    works = [tensor(future, 50), tensor(future, 1)]
    queue.put(works)
    assert queue.take(Limits(8, 8)) == works[:1]
    assert queue.take(Limits(8, 8)) == works[1:]


def test_abandoned_work_leaves_every_lane(future: Futures) -> None:
    queue = Queue(WIDE)
    left = [score(future), search(future), prompt(future), tensor(future, 5)]
    stay = [score(future), search(future), prompt(future)]
    queue.put([*left, *stay])
    for work in left:
        work.future.cancel()
    queue.withdraw(left[1:])
    assert counts(queue) == (4, 4, 16)  # who does not say that it left is noticed when its turn comes
    assert [take_prompt(queue), *queue.take(Limits(9, 99)), *queue.take_search(Limits(9, 99))] == [
        stay[2],
        stay[0],
        stay[1],
    ]
    assert counts(queue) == (0, 0, 0)


def take_prompt(queue: Queue) -> GenerateWork:
    (work,) = queue.next_prompts(1)
    assert work is not None
    queue.take_prompt(work)
    return work


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
            assert take_prompt(queue) is model.prompts.pop(0)
        elif name == "leave":
            leave(queue, model, int(value))  # type: ignore[call-overload]
        assert counts(queue) == model.counts()
    while model.forward or model.search:
        take(queue, model, Limits(3, 20))
    while model.prompts:
        assert take_prompt(queue) is model.prompts.pop(0)
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
            queue.put(works)
        return
    if any(has + more > limit for has, more, limit in zip(model.counts(), wanted, room, strict=True)):
        with pytest.raises(OverloadError):
            queue.put(works)
        return
    queue.put(works)
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
        queue.withdraw([gone])
        for lane in model.lanes:
            lane[:] = [work for work in lane if work is not gone]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def of(client: str, timeout_s: float = math.inf) -> dict[str, Terms]:
    return {"terms": Terms(client=client, timeout_s=timeout_s)}


def test_retry_after_is_how_long_the_rows_in_the_way_take_to_leave(future: Futures) -> None:
    clock = Clock()
    queue = Queue(QueueLimits(1000, 100, 1000), clock)
    queue.put([tensor(future, 10) for _ in range(10)])
    for _ in range(4):
        clock.now += 0.5
        assert sum(work.num_rows for work in queue.take(Limits(10, 1000))) == 10  # 20 rows per second
    assert queue.wait_s == pytest.approx(3.0)
    with pytest.raises(OverloadError) as raised:
        queue.put([tensor(future, 80)])
    assert raised.value.retry_after_s == pytest.approx(40 / 20)
    clock.now += 2.0
    while queue:
        queue.take(Limits(10, 1000))
    assert queue.wait_s == 0


def test_work_past_its_deadline_is_never_taken_and_handed_out_once(future: Futures) -> None:
    clock = Clock()
    queue = Queue(WIDE, clock)
    late, in_time = [
        ScoreWork(future=future(), token_ids=(1,), num_targets=1, chain=CHAIN, **of("", s)) for s in (1, 9)
    ]
    queue.put([late, in_time])
    clock.now = 1.0
    assert queue.take(Limits(8, 100)) == [in_time]
    assert queue.take_overdue() == [late]
    assert queue.take_overdue() == []
    assert counts(queue) == (0, 0, 0)


def test_prompts_that_may_go_next_are_of_one_priority_and_not_over(future: Futures) -> None:
    def waiting(priority: int, timeout_s: float = 9.0) -> GenerateWork:
        work = prompt(future)
        work.terms = Terms(priority=priority, timeout_s=timeout_s)
        return work

    clock = Clock()
    queue = Queue(WIDE, clock)
    assert queue.next_prompts(4) == []
    works = [waiting(3), waiting(2), waiting(2), waiting(2, timeout_s=0.5), waiting(2), waiting(2), waiting(2)]
    queue.put(works)
    works[2].future.cancel()
    clock.now = 1.0
    assert queue.next_prompts(3) == [works[1], works[4], works[5]]
    queue.take_prompt(works[4])
    assert queue.next_prompts(3) == [works[1], works[5], works[6]]
    for work in (works[1], works[5], works[6]):
        queue.take_prompt(work)
    assert queue.next_prompts(3) == [works[0]]
    assert queue.take_overdue() == [works[3]]


def test_client_is_bounded_in_rows_and_named(future: Futures) -> None:
    def rows(client: str, count: int) -> TensorWork:
        return TensorWork(future=future(), inputs={"x": np.zeros((count, 1))}, chains=(CHAIN,) * count, **of(client))

    queue = Queue(QueueLimits(100, 100, 1000, max_client_rows=5))
    queue.put([rows("a", 4)])
    with pytest.raises(OverloadError, match="client 'a' has 4 rows waiting and 2 more would pass its limit of 5") as no:
        queue.put([rows("a", 2)])
    assert no.value.unit == "client"
    with pytest.raises(LengthError, match="the request has 6 rows and one client may have 5 waiting"):
        queue.put([rows("b", 6)])
    queue.put([rows("b", 5)])
    queue.put([last := rows("a", 1)])
    queue.withdraw([last])
    assert counts(queue) == (2, 9, 9)
    queue.take(Limits(100, 100))
    queue.put([rows("a", 5)])


def test_clients_share_what_a_batch_takes(future: Futures) -> None:
    def one(client: str) -> ScoreWork:
        return ScoreWork(future=future(), token_ids=(1,), num_targets=1, chain=CHAIN, **of(client))

    queue = Queue(WIDE)
    queue.put([one("many") for _ in range(900)])
    queue.take(Limits(8, 100))
    queue.put([modest := one("few")])
    assert modest in queue.take(Limits(8, 100))
