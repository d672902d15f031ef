"""The rate at which a queue empties, on a clock that tests set."""

import pytest

from service.engine.drain import DrainRate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def leave(rate: DrainRate, clock: Clock, seconds: float, *counts: int) -> None:
    clock.now += seconds
    rate.leave(counts)


def test_time_to_room_follows_from_what_left(clock: Clock) -> None:
    rate = DrainRate(2, clock)
    for _ in range(10):
        leave(rate, clock, 0.1, 5, 40)
    assert rate.seconds_for(0, 100) == pytest.approx(2.0)
    assert rate.seconds_for(1, 100) == pytest.approx(0.25)


def test_nothing_is_known_before_anything_left(clock: Clock) -> None:
    assert DrainRate(1, clock).seconds_for(0, 10_000) == 1.0


def test_idle_time_does_not_count(clock: Clock) -> None:
    rate = DrainRate(1, clock)
    leave(rate, clock, 1.0, 10)
    clock.now += 3600
    rate.begin()
    assert rate.seconds_for(0, 20) == pytest.approx(2.0)


def test_newer_rates_replace_older_ones(clock: Clock) -> None:
    rate = DrainRate(1, clock)
    for _ in range(100):
        leave(rate, clock, 0.1, 100)
    for _ in range(200):
        leave(rate, clock, 0.1, 1)
    assert rate.seconds_for(0, 10) == pytest.approx(1.0, rel=0.05)


def test_a_device_that_hangs_slows_the_rate_while_it_hangs(clock: Clock) -> None:
    rate = DrainRate(1, clock)
    leave(rate, clock, 1.0, 10)
    clock.now += 9.0
    assert rate.seconds_for(0, 10) == pytest.approx(10.0)
    clock.now += 1e6
    assert rate.seconds_for(0, 10) == 600.0
