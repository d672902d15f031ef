"""Load shed in depth: a ladder that is one, and steps down and back that do not flutter."""

import pytest

from models.chain import Chain
from models.errors import ChainError
from service.engine.degrade import Degrade, Ladder, read_ladder


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steps(degrade: Degrade, clock: Clock, pressure: float, seconds: float, every: float = 0.05) -> list[int]:
    """The steps seen by requests that come regularly."""
    found = []
    for _ in range(round(seconds / every)):
        clock.now += every
        found.append(degrade.step(pressure))
    return found


def test_pressure_is_the_wait_or_the_fullness_whichever_is_worse() -> None:
    ladder = Ladder((Chain((0,)),), max_wait_s=2.0, max_fraction=0.5)
    assert ladder.pressure(1.0, 0.1) == 0.5
    assert ladder.pressure(0.1, 0.75) == 1.5


def test_pressure_lowers_step_by_step_to_the_last(clock: Clock) -> None:
    degrade = Degrade(3, clock)
    seen = steps(degrade, clock, 1.5, 2.0)
    assert seen[0] == 1
    assert sorted(seen) == seen
    assert set(seen) == {1, 2, 3}
    assert seen.index(2) == pytest.approx(5, abs=1)


def test_calm_brings_the_full_chain_back_slowly(clock: Clock) -> None:
    degrade = Degrade(2, clock)
    steps(degrade, clock, 2.0, 1.0)
    seen = steps(degrade, clock, 0.1, 3.0)
    assert seen[0] == 2
    assert seen[25] == 1
    assert seen[-1] == 0
    assert sorted(seen, reverse=True) == seen


def test_pressure_in_between_changes_nothing(clock: Clock) -> None:
    degrade = Degrade(3, clock)
    assert set(steps(degrade, clock, 0.9, 5.0)) == {0}
    degrade.step(1.0)
    assert set(steps(degrade, clock, 0.9, 5.0)) == {1}


def test_pressure_that_comes_and_goes_does_not_flutter(clock: Clock) -> None:
    degrade = Degrade(1, clock)
    seen = [degrade.step(1.2)]
    for _ in range(20):
        seen += steps(degrade, clock, 0.1, 0.5) + steps(degrade, clock, 1.2, 0.1)
    assert set(seen) == {1}


def test_time_in_which_nobody_asked_counts_as_calm(clock: Clock) -> None:
    degrade = Degrade(3, clock)
    steps(degrade, clock, 2.0, 2.0)
    clock.now += 10.0
    assert degrade.step(0.0) == 0


def test_ladder_is_read_for_a_model() -> None:
    wanted = (Chain.parse("0-1,3-5"), Chain.parse("0,5"))
    assert read_ladder(["0-5", "0-1,3-5", "0,5"], 6, 24) == wanted
    assert read_ladder(["0-1,3-5", "0,5"], 6, 24) == wanted


@pytest.mark.parametrize(
    ("chains", "words"),
    [
        (["0-1,3-5", "0-4"], "'0-4' has 5 visits and follows one of 5; each must be shorter"),
        (["5,4,3,2,1,0"], "has 6 visits and follows one of 6"),
        (["0-6"], "visit 6 names layer 6; the model has layers 0 to 5"),
        (["full"], "neither a layer nor a run"),
    ],
    ids=["as long", "as long as full", "no such layer", "no chain"],
)
def test_what_is_no_ladder_is_refused(chains: list[str], words: str) -> None:
    with pytest.raises(ChainError, match=words):
        read_ladder(chains, 6, 24)
