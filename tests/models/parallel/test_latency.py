"""What a pass is predicted to take: the closed form, the virtual clock, and cases worked by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.lm.residual import Residual
from models.parallel.latency import (
    FORMS,
    Costs,
    Link,
    crossings,
    fastest,
    gains,
    num_all_reduces,
    predicted,
    told,
)
from models.parallel.timeline import Launch, Run, Wait, interleaved, schedule, simulate

LADDER = FORMS["ladder"]
TWELVE = range(12)

seconds = st.integers(0, 40).map(lambda quarters: quarters / 4)  # sums of these are exact
all_costs = st.builds(Costs, seconds, seconds, seconds, seconds, seconds)
chains = st.lists(st.integers(0, 6), max_size=10).map(tuple)
hybrids = st.builds(
    Residual,
    st.just("ladder"),
    st.sets(st.integers(0, 6)).map(tuple) | st.none(),
    st.sampled_from(("executed", "slot")),
)
forms = (
    st.sampled_from(tuple(FORMS.values())) | hybrids | st.builds(Residual, st.just("desync"), period=st.integers(1, 9))
)


@pytest.mark.parametrize(
    ("all_reduce", "standard", "parallel", "ladder", "desync_4x"),
    [(0.5, 84, 78, 72.5, 75), (2, 120, 96, 74, 84), (4, 168, 120, 98, 96), (8, 264, 168, 194, 120)],
)
def test_forms_take_what_was_worked_out_by_hand(
    all_reduce: float, standard: float, parallel: float, ladder: float, desync_4x: float
) -> None:
    costs = Costs(attention_s=2, mlp_s=4, all_reduce_s=all_reduce)
    found = {name: predicted(form, TWELVE, costs) for name, form in FORMS.items()}
    assert found == {
        "standard": standard,
        "parallel": parallel,
        "ladder": ladder,
        "desync-2x": parallel,
        "desync-4x": desync_4x,
        "upper-bound": 72,
    }


@given(forms, chains, all_costs)
def test_virtual_clock_agrees_with_the_closed_form_along_every_chain(
    residual: Residual, executed: tuple[int, ...], costs: Costs
) -> None:
    found = simulate(schedule(residual, executed), costs)
    assert found.total_s == predicted(residual, executed, costs)
    assert len(found.exposed_s) == num_all_reduces(residual, len(executed))


@given(forms, chains, all_costs)
def test_every_all_reduce_is_waited_for_once_and_two_at_most_are_in_flight(
    residual: Residual, executed: tuple[int, ...], costs: Costs
) -> None:
    flying: list[int] = []
    landed = []
    for event in schedule(residual, executed):
        if isinstance(event, Launch):
            flying.append(event.number)
        elif isinstance(event, Wait):
            flying.remove(event.number)
            landed.append(event.number)
        assert len(flying) <= 2
    assert landed == sorted(landed) == list(range(num_all_reduces(residual, len(executed))))


@given(chains.filter(bool), all_costs)
def test_only_the_last_of_a_ladder_is_exposed_while_modules_take_longer(
    executed: tuple[int, ...], costs: Costs
) -> None:
    short = replace(costs, all_reduce_s=min(costs.attention_s, costs.mlp_s))
    *others, last = simulate(schedule(LADDER, executed), short).exposed_s
    assert not any(others)
    assert last == short.all_reduce_s


def test_ladder_launches_under_the_module_behind() -> None:
    assert schedule(LADDER, (3, 5)) == [
        *(Run("attention"), Launch(0), Run("mlp"), Launch(1)),
        *(Wait(0), Run("attention"), Launch(2), Wait(1), Run("mlp"), Launch(3)),
        *(Wait(2), Wait(3)),
    ]


def test_first_ladder_layer_of_a_hybrid_hides_the_last_all_reduce_of_the_standard_ones() -> None:
    hybrid = Residual("ladder", (2, 3))
    found = simulate(schedule(hybrid, range(4)), Costs(3, 5, 2))
    assert found.exposed_s == (2, 2, 2, 0, 0, 0, 0, 2)
    back = simulate(schedule(hybrid, (3, 2, 1, 0)), Costs(3, 5, 2))
    assert back.exposed_s == (0, 0, 0, 2, 2, 2, 2, 2), "a standard layer waits for both"


def test_pending_output_lands_in_the_gap_under_the_slot_rule() -> None:
    costs = Costs(3, 5, 2)
    slot = Residual("ladder", on_skip="slot")
    assert simulate(schedule(slot, (0, 1, 2)), costs) == simulate(schedule(LADDER, (0, 1, 2)), costs)
    assert simulate(schedule(slot, (0, 1, 1)), costs) == simulate(schedule(LADDER, (0, 1, 1)), costs)
    assert simulate(schedule(slot, (0, 2, 3)), costs).exposed_s == (0, 2, 0, 0, 0, 2)


def test_other_groups_hide_what_a_standard_layer_waits_for() -> None:
    costs = Costs(3, 5, 2)
    standard = FORMS["standard"]
    alone = 2 * simulate(schedule(standard, range(6)), costs).total_s
    calls = [(group, layer) for layer in range(6) for group in (0, 1)]
    together = simulate(interleaved(standard, calls), costs, costs)
    # Attention's are read at once in both groups; of those of the MLPs only the two last have nothing behind them:
    # the first of these runs while the other group's last modules do.
    assert together.total_s == alone - 11 * 2
    ladder = simulate(interleaved(LADDER, calls), costs, costs)
    assert alone / together.total_s > 1.1
    assert together.total_s / ladder.total_s < alone / (2 * simulate(schedule(LADDER, range(6)), costs).total_s)


def test_groups_of_other_sizes_have_costs_of_their_own() -> None:
    events = interleaved(FORMS["parallel"], [(0, 0), (1, 0)])
    found = simulate(events, Costs(1, 2, 10), Costs(3, 4, 20))
    # 0 launches at 3 and is done at 13; 1 launches at 10 and is done 20 after the channel is free.
    assert (found.total_s, found.exposed_s) == (33, (3, 20))


def test_form_that_is_fastest_changes_where_the_formulas_cross() -> None:
    free = Costs(2e-5, 4e-5, 0)
    (at, change) = fastest(80, free)
    assert (at[1], change[1]) == ("ladder", "parallel")
    assert change[0] == pytest.approx(6e-5, rel=0.02), "about where an all-reduce takes as long as a layer"
    late = replace(free, overhead_s=5.5e-6)
    names = [name for _, name in fastest(80, late)]
    assert names == ["parallel", "ladder", "parallel"], "a fast all-reduce is not worth hiding"
    (even,) = crossings(FORMS["standard"], LADDER, 80, late)
    assert even == pytest.approx(5.5e-6, rel=0.01), "ladder pays once an all-reduce takes longer than its overhead"


@given(all_costs, st.integers(1, 40), st.tuples(st.sampled_from(list(FORMS)), st.sampled_from(list(FORMS))))
def test_forms_are_even_at_their_crossings(costs: Costs, num_layers: int, names: tuple[str, str]) -> None:
    first, second = (FORMS[name] for name in names)
    for at in crossings(first, second, num_layers, costs):
        there = replace(costs, all_reduce_s=at)
        assert predicted(first, range(num_layers), there) == pytest.approx(
            predicted(second, range(num_layers), there), rel=1e-9, abs=1e-9
        )


@given(all_costs, st.integers(1, 40))
def test_fastest_is_nowhere_beaten(costs: Costs, num_layers: int) -> None:
    spans = fastest(num_layers, costs)
    name = [form for start, form in spans if start <= costs.all_reduce_s][-1]
    times = {one: predicted(FORMS[one], range(num_layers), costs) for one in ("standard", "parallel", "ladder")}
    assert times[name] == pytest.approx(min(times.values()), rel=1e-9, abs=1e-9)


def test_gain_of_a_ladder_is_largest_where_both_take_equally_long() -> None:
    def gain(all_reduce_s: float) -> float:
        return gains(80, Costs(1, 1, all_reduce_s))["ladder"]

    assert gain(1) == pytest.approx(2, rel=0.01)
    assert gain(1) > gain(0.9)
    assert gain(1) > gain(1.1)
    assert gains(80, Costs(1, 1, 0)) == dict.fromkeys(FORMS, 1.0)


@pytest.mark.parametrize(
    ("num_layers", "milliseconds", "all_reduce_us", "ladder", "desync"),
    [
        (32, 2.098, 22.8, 2.494, 2.854),
        (32, 2.685, 25.9, 2.981, 3.568),
        (32, 3.168, 26.1, 3.482, 4.069),
        (32, 4.441, 27.3, 4.880, 5.447),
        (80, 8.945, 24.0, 9.740, 10.832),
        (80, 10.856, 25.8, 11.625, 12.942),
    ],
)
def test_published_decode_times_are_reproduced(
    num_layers: int, milliseconds: float, all_reduce_us: float, ladder: float, desync: float
) -> None:
    module = milliseconds / 1000 / num_layers / 2
    costs = Costs(module, module, all_reduce_us * 1e-6, overhead_s=5.2e-6)
    assert 1000 * predicted(LADDER, range(num_layers), costs) == pytest.approx(ladder, rel=0.03)
    assert 1000 * predicted(FORMS["desync-2x"], range(num_layers), costs) == pytest.approx(desync, rel=0.03)


def test_gains_are_told_in_a_line() -> None:
    us = 1e-6
    assert told(80, Costs(27 * us, 63 * us, 60 * us, 5.5 * us)) == (
        "predicted times faster than standard: parallel 1.40, ladder 1.56, upper-bound 2.33; fastest: ladder"
    )
    assert told(80, Costs(27 * us, 63 * us, 8 * us, 5.5 * us)).endswith(
        "ladder 1.05, upper-bound 1.18; fastest: parallel"
    )


def test_link_takes_its_start_and_its_bytes() -> None:
    assert Link(7e-6, 1e-9).seconds(8192) == pytest.approx(15.192e-6)
