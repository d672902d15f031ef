"""When a call is tried again, on a clock that stands still unless it is told to go on."""

from email.utils import formatdate
from typing import Any

import httpx
import pytest

from service.client.errors import (
    BusyError,
    ClientError,
    InvalidError,
    Problem,
    ServerError,
    TimeOverError,
    TooLateError,
    UnavailableError,
    UnreachableError,
    error_of,
)
from service.client.retry import Attempts, Retries, retry_after_s


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(timeout_s: float | None = None, clock: Clock | None = None, draw: float = 1.0, **retries: Any) -> Attempts:
    return Attempts(Retries(**retries), timeout_s, clock or Clock(), lambda: draw)


def problem(status: int, retry_after: float | None = None) -> ClientError:
    return error_of(Problem(status, "title", "detail", "id", retry_after))


def test_pauses_double_up_to_the_longest() -> None:
    tries = attempts(max_retries=5, first_pause_s=0.1, max_pause_s=0.5)
    assert [tries.pause_s(problem(503), True) for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    with pytest.raises(UnavailableError):
        tries.pause_s(problem(503), True)


def test_pauses_are_drawn_from_the_upper_half() -> None:
    assert attempts(draw=0.0).pause_s(problem(429), True) == 0.05
    assert attempts(draw=0.5).pause_s(problem(429), True) == pytest.approx(0.075)


def test_pause_is_never_shorter_than_told() -> None:
    assert attempts(draw=0.0).pause_s(problem(429, 3.0), True) == 3.05
    assert attempts(draw=1.0).pause_s(problem(503, 3.0), True) == 3.1


def test_pause_that_would_outlast_the_call_ends_it_at_once() -> None:
    clock = Clock()
    tries = attempts(5.0, clock)
    assert tries.pause_s(problem(429, 3.0), True) == 3.1
    clock.now += 3.1
    with pytest.raises(BusyError) as raised:
        tries.pause_s(problem(429, 3.0), True)
    assert raised.value.retry_after_s == 3.0


def test_time_that_is_over_is_told() -> None:
    clock = Clock()
    tries = attempts(2.0, clock)
    assert (tries.left_s(), tries.told_s()) == (2.0, 1.9)
    clock.now += 1.9
    assert tries.left_s() == pytest.approx(0.1)
    assert tries.told_s() == pytest.approx(0.09)
    clock.now += 0.1
    with pytest.raises(TimeOverError, match=r"no answer within 2\.0 s"):
        tries.left_s()
    assert attempts(None).left_s() is None
    assert attempts(None).told_s() is None


@pytest.mark.parametrize(
    ("error", "is_repeatable", "ours"),
    [
        (httpx.ConnectError("refused"), False, None),
        (httpx.ReadError("reset"), True, None),
        (httpx.RemoteProtocolError("gone"), True, None),
        (problem(429), False, None),
        (problem(503), False, None),
        (httpx.ReadError("reset"), False, UnreachableError),
        (httpx.ReadTimeout("slow"), True, TimeOverError),
        (problem(422), True, InvalidError),
        (problem(500), True, ServerError),
        (problem(504), True, TooLateError),
    ],
)
def test_only_what_does_no_harm_is_tried_again(error: Exception, is_repeatable: bool, ours: Any) -> None:
    if ours is None:
        assert attempts().pause_s(error, is_repeatable) == 0.1
        with pytest.raises(ClientError):
            attempts(max_retries=0).pause_s(error, is_repeatable)
        return
    with pytest.raises(ours):
        attempts().pause_s(error, is_repeatable)


def test_errors_are_those_python_knows() -> None:
    assert issubclass(TooLateError, TimeOverError)
    assert issubclass(TimeOverError, TimeoutError)
    assert issubclass(UnreachableError, ConnectionError)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), (formatdate(0, usegmt=True), 0, 0), (formatdate(4102444800, usegmt=True), 1e6, 1e10)],
)
def test_retry_after_is_read(header: str, least: float, most: float) -> None:
    found = retry_after_s(header)
    assert found is not None
    assert least <= found <= most


@pytest.mark.parametrize("header", [None, "", "soon", "-1", "1e9"])
def test_retry_after_that_says_nothing_is_passed_over(header: str | None) -> None:
    assert retry_after_s(header) is None
