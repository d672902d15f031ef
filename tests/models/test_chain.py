"""Chains as text and back, their edits, and what is said about bad ones."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import ChainError

layers = st.lists(st.integers(0, 30), min_size=1, max_size=24)
# Runs up are common in real chains and rare in random lists.
runs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=6).map(
    lambda parts: [layer for first, more in parts for layer in range(first, first + more + 1)]
)


@given(st.one_of(layers, runs))
def test_text_form_round_trips(visited: list[int]) -> None:
    chain = Chain(tuple(visited))
    assert Chain.parse(chain.format()) == chain
    assert str(chain) == chain.format()


@given(runs)
def test_text_form_joins_every_run(visited: list[int]) -> None:
    parts = Chain(tuple(visited)).format().split(",")
    for part, following in pairwise(parts):
        assert int(part.split("-")[-1]) + 1 != int(following.split("-")[0])


@pytest.mark.parametrize(
    ("text", "visited"),
    [
        ("0-3,5,5,7-11", (0, 1, 2, 3, 5, 5, 7, 8, 9, 10, 11)),
        ("4", (4,)),
        ("3-3", (3,)),
        (" 0 , 2-3 ", (0, 2, 3)),
        ("2,1,0", (2, 1, 0)),
        ("007", (7,)),
    ],
)
def test_text_is_read(text: str, visited: tuple[int, ...]) -> None:
    assert Chain.parse(text).layers == visited


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is neither a layer nor a run"),
        ("0,,1", "'' is neither"),
        ("a", "'a' is neither"),
        ("-1", "'-1' is neither"),
        ("1-", "'1-' is neither"),
        ("0 - 3", "'0 - 3' is neither"),
        ("1.5", "'1.5' is neither"),
        ("٣", "is neither"),
        ("5-3", "'5-3' goes down"),
        ("0-999999999", "makes more than 10000 visits"),
        (",".join(["0-99"] * 101), "makes more than 10000 visits"),
        ("9" * 5000, "is neither a layer nor a run"),
    ],
)
def test_unreadable_part_is_named(text: str, said: str) -> None:
    with pytest.raises(ChainError, match=said) as raised:
        Chain.parse(text)
    assert len(str(raised.value)) < 200


blocks = st.tuples(layers, st.integers(0, 23), st.integers(1, 24)).filter(
    lambda block: block[1] + block[2] <= len(block[0])
)


@given(blocks)
def test_skip_leaves_the_block_out(block: tuple[list[int], int, int]) -> None:
    visited, visit, count = block
    wanted = [layer for place, layer in enumerate(visited) if not visit <= place < visit + count]
    assert list(Chain(tuple(visited)).skip(visit, count).layers) == wanted


@given(blocks, st.integers(1, 4))
def test_repeat_makes_the_block_again_right_after_itself(block: tuple[list[int], int, int], times: int) -> None:
    visited, visit, count = block
    wanted: list[int] = []
    for place, layer in enumerate(visited):
        wanted.append(layer)
        if place == visit + count - 1:
            for _ in range(times):
                wanted.extend(visited[visit : visit + count])
    assert list(Chain(tuple(visited)).repeat(visit, count, times).layers) == wanted


@given(layers, st.integers(-30, 30), st.integers(-30, 30))
def test_block_outside_the_chain_is_refused(visited: list[int], visit: int, count: int) -> None:
    chain = Chain(tuple(visited))
    if visit >= 0 and count >= 1 and visit + count <= len(visited):
        assert len(chain.skip(visit, count)) == len(chain) - count
        return
    said = f"{count} visits from visit {visit} .* chain of {len(chain)} visits"
    with pytest.raises(ChainError, match=said):
        chain.skip(visit, count)
    with pytest.raises(ChainError, match=said):
        chain.repeat(visit, count, 1)


def test_repeating_no_times_is_refused() -> None:
    with pytest.raises(ChainError, match="0 more times; use 1 or more"):
        Chain.full(3).repeat(0, 1, 0)


@pytest.mark.parametrize(
    ("visited", "said"),
    [
        ((), "the chain is empty; name at least one layer, or send 'full'"),
        ((0, 1, 4), "visit 2 names layer 4; the model has layers 0 to 3"),
        ((-1,), "visit 0 names layer -1; the model has layers 0 to 3"),
        ((0,) * 9, "the chain has 9 visits; this model takes at most 8"),
    ],
)
def test_check_names_the_visit_the_value_and_the_limit(visited: tuple[int, ...], said: str) -> None:
    with pytest.raises(ChainError, match=said):
        Chain(visited).check(num_layers=4, max_length=8)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_check_returns_a_chain_the_model_can_run(visited: list[int]) -> None:
    chain = Chain(tuple(visited))
    assert chain.check(num_layers=4, max_length=8) is chain


def test_full_chain_visits_every_layer_once() -> None:
    assert Chain.full(4) == Chain((0, 1, 2, 3))
    assert Chain.full(0).layers == ()
    assert len(Chain.full(7)) == 7


@given(st.integers(1, 200).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_depth_keeps_evenly_spaced_layers_with_the_first_and_the_last(counts: tuple[int, int]) -> None:
    num_layers, depth = counts
    kept = Chain.of_depth(num_layers, depth).layers
    assert len(kept) == depth
    assert kept[0] == 0
    assert kept[-1] == (num_layers - 1 if depth > 1 else 0)
    gaps = [following - layer for layer, following in pairwise(kept)]
    assert min(gaps, default=1) >= 1
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


@given(st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_fraction_of_depth_is_a_budget(num_layers: int, depth: float) -> None:
    kept = len(Chain.of_depth(num_layers, depth))
    assert kept <= max(1, depth * num_layers + 1e-6)
    assert kept >= depth * num_layers - 1


@pytest.mark.parametrize(("num_layers", "depth", "count"), [(100, 0.29, 29), (12, 1.0, 12), (12, 0.5, 6), (3, 1, 1)])
def test_fractions_and_counts_of_layers_are_told_apart(num_layers: int, depth: float, count: int) -> None:
    assert len(Chain.of_depth(num_layers, depth)) == count


@pytest.mark.parametrize("depth", [0, -1, 13, 0.0, 1.01, 12.0, float("nan"), float("inf")])
def test_depth_that_no_layers_fit_is_refused(depth: float) -> None:
    with pytest.raises(ChainError, match="1 to 12 layers"):
        Chain.of_depth(12, depth)
