"""Edits against a plain re-derivation from the paper's words. Knows no search."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import ChainError
from service.cola.space import CoLaSpace

chains = st.lists(st.integers(0, 5), min_size=1, max_size=9).map(lambda layers: Chain(tuple(layers)))


@st.composite
def spaces(draw: st.DrawFn) -> CoLaSpace:
    shortest = draw(st.integers(1, 10))
    return CoLaSpace(
        num_layers=6,
        min_length=shortest,
        max_length=draw(st.integers(shortest, 24)),
        operations=draw(st.sampled_from([("skip",), ("repeat",), ("skip", "repeat"), ("repeat", "skip")])),
        max_block=draw(st.integers(1, 4)),
        max_repeats=draw(st.integers(1, 4)),
    )


def naive_edits(space: CoLaSpace, chain: Chain) -> set[Chain]:
    """Cut out or copy every block one could, then throw away what the bounds forbid."""
    edited = set()
    for first in range(len(chain)):
        for end in range(first + 1, min(first + space.max_block, len(chain)) + 1):
            before, block, after = chain.layers[:first], chain.layers[first:end], chain.layers[end:]
            if "skip" in space.operations:
                edited.add(Chain(before + after))
            if "repeat" in space.operations:
                edited |= {Chain(before + block * (1 + extra) + after) for extra in range(1, space.max_repeats + 1)}
    return {one for one in edited if space.min_length <= len(one) <= space.max_length}


@given(spaces(), chains)
def test_edits_are_those_of_a_naive_derivation_each_once(space: CoLaSpace, chain: Chain) -> None:
    edited = space.edits(chain)
    assert len(edited) == len(set(edited))
    assert set(edited) == naive_edits(space, chain)


@given(spaces(), chains, st.integers(0, 2**32))
def test_drawing_gives_the_same_chains_as_listing(space: CoLaSpace, chain: Chain, seed: int) -> None:
    assert set(space.draw(chain, random.Random(seed))) == set(space.edits(chain))


def test_edits_come_in_canonical_order() -> None:
    space = CoLaSpace.of(3, max_block=2, max_repeats=2, max_length=5)
    texts = [chain.format() for chain in space.edits(Chain.full(3))]
    of_the_first = ["1-2", "2", "0,0-2", "0,0,0-2", "0-1,0-2"]
    of_the_second = ["0,2", "0", "0-1,1-2", "0-1,1,1-2", "0-2,1-2"]
    assert texts == [*of_the_first, *of_the_second, "0-1", "0-2,2", "0-2,2,2"]


def test_a_repeat_makes_extra_copies() -> None:
    space = CoLaSpace.of(3, operations=("repeat",), max_length=9)
    assert Chain((0, 1, 2, 0, 1, 2, 0, 1, 2)) in space.edits(Chain.full(3))


@pytest.mark.parametrize(("num_layers", "num_edits"), [(28, 212), (36, 276)])
def test_one_extra_copy_gives_as_many_edits_as_published(num_layers: int, num_edits: int) -> None:
    assert len(CoLaSpace.of(num_layers, max_repeats=1).edits(Chain.full(num_layers))) == num_edits


def test_skips_and_repeats_are_drawn_evenly() -> None:
    drawn = CoLaSpace.of(12).draw(Chain.full(12), random.Random(0))
    lengths = [len(next(drawn)) for _ in range(40)]
    assert 10 <= sum(length < 12 for length in lengths) <= 30


def test_lengths_follow_from_the_number_of_layers() -> None:
    assert (CoLaSpace.of(12).min_length, CoLaSpace.of(12).max_length) == (1, 24)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"operations": ()}, "no operations; name at least one of skip, repeat"),
        ({"operations": ("skip", "swap")}, "'swap' is unknown; use skip or repeat"),
        ({"max_block": 5}, "max_block is 5; use 1 to 4"),
        ({"max_block": 0}, "max_block is 0; use 1 to 4"),
        ({"max_repeats": 9}, "max_repeats is 9; use 1 to 4"),
        ({"min_length": 0}, "min_length is 0"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is above max_length 8; lower the one or raise the other"),
        ({"max_length": 7}, "no skip or repeat of the 12 visits .* from 1 to 7; widen"),
        ({"min_length": 29, "max_length": 40}, "from 29 to 40; widen"),
        ({"operations": ("skip",), "min_length": 12}, "no skip of the 12 visits"),
    ],
)
def test_an_impossible_space_is_refused_with_value_limit_and_remedy(bounds: dict[str, object], words: str) -> None:
    with pytest.raises(ChainError, match=words):
        CoLaSpace.of(12, **bounds)  # type: ignore[arg-type]


def test_a_model_without_layers_has_no_space() -> None:
    with pytest.raises(ChainError, match="0 layers"):
        CoLaSpace.of(0)


def test_edited_chains_may_have_smaller_blocks_than_the_full_one() -> None:
    space = CoLaSpace.of(5, max_block=3, max_repeats=1, deep_block=1)
    assert Chain((0, 4)) in space.edits(Chain.full(5))
    assert {len(chain) for chain in space.edits(Chain((0, 1, 2, 3)))} == {3, 5}


def test_visits_of_one_layer_can_be_bounded() -> None:
    space = CoLaSpace.of(3, max_block=1, max_repeats=2, max_visits=2)
    assert Chain((0, 0, 1, 2)) in space.edits(Chain.full(3))
    assert Chain((0, 0, 0, 1, 2)) not in space.edits(Chain.full(3))
    assert Chain((0, 0, 0, 1, 2)) not in space.edits(Chain((0, 0, 1, 2)))


@given(spaces(), chains, st.integers(0, 4), st.integers(0, 2**32))
def test_visits_before_the_first_that_may_be_edited_stay(space: CoLaSpace, chain: Chain, first: int, seed: int) -> None:
    bounded = replace(space, min_edit_layer=first)
    edited = bounded.edits(chain)
    assert set(bounded.draw(chain, random.Random(seed))) == set(edited)
    assert all(one.layers[:first] == chain.layers[:first] for one in edited)


def test_skips_of_layers_that_change_little_are_drawn_first() -> None:
    space = CoLaSpace.of(4, operations=("skip",), max_block=1)
    drawn = space.draw(Chain.full(4), random.Random(0), influence=(0.9, 0.1, 0.4, 0.2))
    assert [one.format() for one in drawn] == ["0,2-3", "0-2", "0-1,3", "1-3"]


@pytest.mark.parametrize("operations", [("skip",), ("repeat",), ("skip", "repeat")])
def test_shorter_chains_are_never_undercounted(operations: tuple[str, ...]) -> None:
    space = CoLaSpace.of(3, operations=operations, max_length=5)
    seen, waiting = {Chain.full(3)}, [Chain.full(3)]
    while waiting:
        new = set(space.edits(waiting.pop())) - seen
        seen |= new
        waiting += new
    counts = [sum(len(chain) < length for chain in seen) for length in range(1, 5)]
    bounds = [space.count_below(length) for length in range(1, 5)]
    assert all(bound >= count for bound, count in zip(bounds, counts, strict=True))
    if operations != ("repeat",):
        assert bounds == counts  # all subsequences; all sequences
