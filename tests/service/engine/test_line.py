"""Who is next: first in first out of one client, fair between clients, by priority, and nobody starves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.line import MAX_OVERTAKEN, Line
from service.engine.terms import NUM_PRIORITIES, Terms


@dataclass(eq=False)
class Job:
    terms: Terms
    num_tokens: int = 1


def job(client: str = "", num_tokens: int = 1, priority: int = 3) -> Job:
    return Job(Terms(client=client, priority=priority), num_tokens)


def take(line: Line[Job]) -> Job:
    first = line.first()
    assert first is not None
    line.take(first)
    return first


def line_of(jobs: Sequence[Job]) -> Line[Job]:
    line = Line[Job]()
    for one in jobs:
        line.put(one)
    return line


def test_one_client_is_served_first_in_first_out() -> None:
    jobs = [job(num_tokens=1 + number % 7) for number in range(100)]
    line = line_of(jobs)
    assert list(line) == jobs
    assert [take(line) for _ in jobs] == jobs
    assert line.first() is None
    assert not line


def test_single_row_does_not_wait_behind_a_thousand_of_another_client() -> None:
    line = line_of([job("greedy") for _ in range(1000)])
    for _ in range(10):
        take(line)
    line.put(modest := job("modest"))
    assert line.first() is modest


def test_clients_get_equal_shares_of_tokens_not_of_turns() -> None:
    line = line_of([*(job("long", num_tokens=8) for _ in range(100)), *(job("short") for _ in range(800))])
    served: Counter[str] = Counter()
    for _ in range(450):
        one = take(line)
        served[one.terms.client] += one.num_tokens
        assert abs(served["long"] - served["short"]) <= 8
    assert served["long"] == served["short"] == 400


def test_client_that_asks_one_by_one_gets_no_more_than_its_share() -> None:
    line = line_of([job("many") for _ in range(1000)])
    line.put(job("one", num_tokens=10))
    served: Counter[str] = Counter()
    for _ in range(200):
        one = take(line)
        served[one.terms.client] += one.num_tokens
        if one.terms.client == "one":
            line.put(job("one", num_tokens=10))
    assert abs(served["one"] - served["many"]) <= 10


def test_more_urgent_work_goes_first() -> None:
    jobs = [job(priority=priority) for priority in (3, 5, 1, 4, 2, 1)]
    line = line_of(jobs)
    assert [take(line).terms.priority for _ in jobs] == [1, 1, 2, 3, 4, 5]


def test_low_priority_is_overtaken_only_so_often() -> None:
    line = line_of([job(priority=5), job(priority=4)])
    order = []
    while len(order) < 3 * MAX_OVERTAKEN:
        line.put(job(priority=1))
        order.append(take(line).terms.priority)
    assert order.index(4) == MAX_OVERTAKEN
    assert order.index(5) == MAX_OVERTAKEN + 1
    assert Counter(order) == {1: len(order) - 2, 4: 1, 5: 1}


def test_chosen_work_leaves_out_of_turn_and_hurts_no_order() -> None:
    jobs = [job(client, num_tokens=3) for client in "aabbcc"]
    line = line_of(jobs)
    order = list(line)
    line.take(chosen := order[3])
    assert list(line) == [one for one in order if one is not chosen]
    line.put(late := job("d"))
    assert line.first() in (late, order[0])


def test_removed_work_is_gone_once() -> None:
    jobs = [job(client) for client in "aabb"]
    line = line_of(jobs)
    assert line.remove(jobs[0])
    assert not line.remove(jobs[0])
    assert len(line) == 3
    assert jobs[0] not in [take(line) for _ in range(3)]


def test_clients_that_are_gone_are_forgotten() -> None:
    line = line_of([job("stays", num_tokens=10**6), job("stays")])
    take(line)
    for number in range(10_000):
        line.put(job(f"passes {number}"))
        take(line)
    level = line._levels[2]
    assert len(level._ends) <= 1024
    assert len(level._heads) <= 2


clients = st.sampled_from("abc")
steps = st.one_of(
    st.tuples(st.just("put"), st.tuples(clients, st.integers(1, 9), st.integers(1, NUM_PRIORITIES))),
    st.tuples(st.just("take"), st.none()),
    st.tuples(st.sampled_from(["choose", "remove"]), st.integers(0, 50)),
)


@given(st.lists(steps, max_size=80))
def test_nothing_is_lost_and_each_client_stays_in_order(made: list[tuple[str, object]]) -> None:
    line, waiting = Line[Job](), []
    for name, value in made:
        if name == "put":
            client, size, priority = value  # type: ignore[misc]
            waiting.append(job(client, size, priority))
            line.put(waiting[-1])
        elif waiting and name == "take":
            first = line.first()
            assert next(iter(line)) is first
            same = [one for one in waiting if one.terms == first.terms]  # type: ignore[union-attr]
            assert take(line) is same[0]
            waiting.remove(same[0])
        elif waiting:
            one = waiting.pop(int(value) % len(waiting))  # type: ignore[call-overload]
            line.take(one) if name == "choose" else line.remove(one)
        assert len(line) == len(waiting)
        assert set(line) == set(waiting)
    assert {take(line) for _ in waiting} == set(waiting)


@pytest.mark.parametrize("num_clients", [1, 500])
def test_looking_at_the_first_few_takes_none(num_clients: int) -> None:
    line = line_of([job(str(number % num_clients)) for number in range(1000)])
    few = list(islice(line, 5))
    assert [take(line) for _ in few] == few
