"""Real passes of sharded layers: what they launch and wait for is what the schedule says, counted and not timed."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain as joined

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.lm.config import LMConfig
from models.lm.residual import Residual
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


class Slow(Alone):
    """A group of one whose all-reduces take a while in `wait`."""

    def all_reduce(self, tensor: Tensor) -> Handle:
        return Sleeping()


class Sleeping:
    def wait(self) -> None:
        time.sleep(0.02)


def test_seconds_waited_are_counted_once_for_each_handle() -> None:
    metered, recorded = Metered(Slow()), Recorded(Slow())
    for group in (metered, recorded):
        first, second = (group.all_reduce(torch.zeros(3)) for _ in range(2))
        for handle in (second, first, first):
            handle.wait()
        assert 0.04 <= group.waited_s < 0.06
        assert (group.num_all_reduces, group.num_bytes) == (2, 24)
    assert len(recorded.exposed_s) == 2
    assert sum(recorded.exposed_s) == recorded.waited_s


def timed(group: Delayed, *steps: Callable[[], object]) -> list[float]:
    started, found = time.monotonic(), []
    for step in steps:
        step()
        found.append(time.monotonic() - started)
    return found


def test_all_reduces_of_a_slow_channel_come_one_after_the_other() -> None:
    group = Delayed(Alone(), Link(0.02))
    handles = [group.all_reduce(torch.zeros(1)) for _ in range(3)]
    first, second, again, last = timed(group, *(handles[place].wait for place in (0, 1, 0, 2)))
    assert 0.015 < first < 0.03
    assert 0.035 < second <= again < 0.05
    assert 0.055 < last < 0.07


def test_what_runs_meanwhile_hides_a_slow_channel() -> None:
    group = Delayed(Alone(), Link(0.02))
    handle = group.all_reduce(torch.zeros(1))
    (slept, waited) = timed(group, lambda: time.sleep(0.03), handle.wait)
    assert waited - slept < 0.005
    later = group.all_reduce(torch.zeros(1))
    (waited,) = timed(group, later.wait)
    assert waited > 0.015, "the channel had been free; its time counts from the launch"


def test_bytes_take_their_time_on_a_slow_channel() -> None:
    group = Delayed(Alone(), Link(0.01, 1e-5))
    small, large = (timed(group, group.all_reduce(torch.zeros(count)).wait)[0] for count in (1, 1000))
    assert large - small == pytest.approx(0.04, abs=0.015)


def test_names_of_modules_are_those_of_the_schedule() -> None:
    found = events(watched(FORMS["upper-bound"]), alone((0, 1)))
    assert found == list(joined.from_iterable([[Run("attention"), Run("mlp")]] * 2))
