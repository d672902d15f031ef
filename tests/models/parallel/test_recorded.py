"""Real passes of sharded layers: what they launch and wait for is what the schedule says, counted and not timed."""

import time
from dataclasses import replace
from itertools import chain as joined

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.lm.config import LMConfig
from models.lm.residual import Residual
from models.parallel import delayed, recorded
from models.parallel.delayed import Delayed
from models.parallel.group import Alone, Handle
from models.parallel.latency import FORMS, Costs, Link, num_all_reduces, predicted
from models.parallel.model import ShardedModel
from models.parallel.passes import Watched
from models.parallel.recorded import Metered, Recorded
from models.parallel.stream import Stream
from models.parallel.timeline import Event, Run, interleaved, schedule, simulate

NUM_LAYERS, WIDTH = 5, 16
CONFIG = LMConfig(32, WIDTH, 24, NUM_LAYERS, 2, 2, 64)
CHAINS = {
    "full": (0, 1, 2, 3, 4),
    "skips": (0, 2, 4),
    "loops": (0, 1, 1, 1, 2),
    "again": (1, 2, 1, 2),
    "reorder": (4, 0, 3),
    "one": (2,),
    "none": (),
}
RESIDUALS = {name: replace(form, num_ranks=2) for name, form in FORMS.items()} | {
    "hybrid": Residual("ladder", (2, 3, 4)),
    "slot": Residual("ladder", on_skip="slot"),
}
UNEVEN = Costs(attention_s=3, mlp_s=5, all_reduce_s=4)


def watched(residual: Residual) -> Watched:
    """Half of a model, whose other half adds nothing."""
    model = ShardedModel(replace(CONFIG, residual=residual), group := Recorded(Alone(0, 2)))
    return Watched(model.eval(), group, "cpu", None)


@torch.inference_mode()
def events(one: Watched, calls: list[tuple[int, int]], rows: int = 1, tokens: int = 3) -> list[Event]:
    """What a pass of several groups of rows leaves, each call a group and the layer it visits."""
    model, group = one.model, one.group
    token_ids = torch.zeros(rows, tokens, dtype=torch.int64)
    starts = torch.zeros(rows, dtype=torch.int64)
    stream, *shared = model.embed(token_ids, starts, starts[:0])
    streams: dict[int, Stream] = dict.fromkeys([number for number, _ in calls], stream)
    past = model.empty_cache(rows)
    group.forget()
    for number, layer in calls:
        streams[number], _, _ = model.layers[layer](streams[number], *shared, past, past)
    for left in streams.values():
        model.head(left)
    return group.events


def alone(chain: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(0, layer) for layer in chain]


def without_groups(found: list[Event]) -> list[Event]:
    return [event if not hasattr(event, "group") else replace(event, group=0) for event in found]


@pytest.mark.parametrize("name", RESIDUALS)
def test_pass_follows_the_schedule_along_every_chain(name: str) -> None:
    one = watched(RESIDUALS[name])
    for chain in CHAINS.values():
        assert events(one, alone(chain)) == schedule(RESIDUALS[name], chain), chain


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_ladder_exposes_none_but_the_last(chain: tuple[int, ...]) -> None:
    found = simulate(events(watched(FORMS["ladder"]), alone(chain)), Costs(5, 4, 4))
    assert found.exposed_s == (0,) * (2 * len(chain) - 1) + (4,) * bool(chain)
    standard = simulate(events(watched(FORMS["standard"]), alone(chain)), Costs(5, 4, 4))
    assert standard.num_exposed == 2 * len(chain), "the same counting finds what is exposed elsewhere"


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(list(RESIDUALS)), st.lists(st.tuples(st.integers(0, 2), st.integers(0, NUM_LAYERS - 1)), max_size=9)
)
def test_groups_of_rows_in_turns_follow_the_schedule(name: str, calls: list[tuple[int, int]]) -> None:
    found = events(watched(RESIDUALS[name]), calls)
    wanted = interleaved(RESIDUALS[name], calls)
    assert found == without_groups(wanted)


@pytest.mark.parametrize("name", RESIDUALS)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 7)])
def test_all_reduces_and_their_bytes_are_the_formula(name: str, rows: int, tokens: int) -> None:
    one = watched(RESIDUALS[name])
    for chain in CHAINS.values():
        before, bytes_before = one.group.num_all_reduces, one.group.num_bytes
        events(one, alone(chain), rows, tokens)
        # and one of the embedding
        count = num_all_reduces(RESIDUALS[name], len(chain)) + 1
        assert one.group.num_all_reduces - before == count
        assert one.group.num_bytes - bytes_before == count * rows * tokens * WIDTH * 4


@pytest.mark.parametrize("name", RESIDUALS)
def test_virtual_clock_over_a_real_pass_is_the_closed_form(name: str) -> None:
    one = watched(RESIDUALS[name])
    for chain in CHAINS.values():
        found = simulate(events(one, alone(chain)), UNEVEN)
        assert found.total_s == predicted(RESIDUALS[name], chain, UNEVEN)


class Hours:
    """Time in whole hours, which passes for those who sleep alone."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> int:
        return self.now

    perf_counter = monotonic

    def sleep(self, hours: int) -> None:
        self.now += hours


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    made = Hours()
    for module in (delayed, recorded):
        monkeypatch.setattr(module, "time", made)
    return made


def test_time_waited_is_counted_once_for_each_handle(hours: Hours) -> None:
    metered, kept = Metered(Delayed(Alone(), Link(5))), Recorded(Delayed(Alone(), Link(5)))
    for group in (metered, kept):
        first, second = (group.all_reduce(torch.zeros(3)) for _ in range(2))
        hours.sleep(2)
        for handle in (first, second, first):
            handle.wait()
        assert group.waited_s == 3 + 5
        assert (group.num_all_reduces, group.num_bytes) == (2, 24)
    assert kept.exposed_s == [3, 5]


def test_all_reduces_of_a_slow_channel_come_one_after_the_other(hours: Hours) -> None:
    group = Delayed(Alone(), Link(20))
    handles = [group.all_reduce(torch.zeros(1)) for _ in range(3)]
    ends = []
    for place in (0, 1, 0, 2):
        handles[place].wait()
        ends.append(hours.now)
    assert ends == [20, 40, 40, 60]


def test_what_runs_meanwhile_hides_a_slow_channel(hours: Hours) -> None:
    group = Delayed(Alone(), Link(20))
    handle = group.all_reduce(torch.zeros(1))
    hours.sleep(30)
    handle.wait()
    assert hours.now == 30
    group.all_reduce(torch.zeros(1)).wait()
    assert hours.now == 50, "the channel had been free; its time counts from the launch"


def test_bytes_take_their_time_on_a_slow_channel(hours: Hours) -> None:
    group = Delayed(Alone(), Link(10, 2))
    group.all_reduce(torch.zeros(3)).wait()
    assert hours.now == 10 + 2 * 12


class Slow(Alone):
    """A group of one whose all-reduces take 50 ms in `wait`."""

    def all_reduce(self, tensor: Tensor) -> Handle:
        return Sleeping()


class Sleeping:
    def wait(self) -> None:
        time.sleep(0.05)


def test_slow_channel_waits_for_the_real_all_reduce_too() -> None:
    started = time.monotonic()
    Delayed(Slow(), Link(0.01)).all_reduce(torch.zeros(1)).wait()
    assert time.monotonic() - started >= 0.05
    started = time.monotonic()
    Delayed(Slow(), Link(0.1)).all_reduce(torch.zeros(1)).wait()
    assert time.monotonic() - started >= 0.1


def test_names_of_modules_are_those_of_the_schedule() -> None:
    found = events(watched(FORMS["upper-bound"]), alone((0, 1)))
    assert found == list(joined.from_iterable([[Run("attention"), Run("mlp")]] * 2))
