"""Edits against a plain re-derivation from the paper's words. Knows no search."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import ChainError
from service.cola.space import Space

chains = st.lists(st.integers(0, 5), min_size=1, max_size=9).map(lambda layers: Chain(tuple(layers)))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    shortest = draw(st.integers(1, 10))
    return Space(
        min_length=shortest,
        max_length=draw(st.integers(shortest, 24)),
        operations=draw(st.sampled_from([("skip",), ("repeat",), ("skip", "repeat"), ("repeat", "skip")])),
        max_block=draw(st.integers(1, 4)),
        max_repeats=draw(st.integers(1, 4)),
    )


def naive_edits(space: Space, chain: Chain) -> set[Chain]:
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
def test_edits_are_those_of_a_naive_derivation_each_once(space: Space, chain: Chain) -> None:
    edited = space.edits(chain)
    assert len(edited) == len(set(edited))
    assert set(edited) == naive_edits(space, chain)


@given(spaces(), chains, st.integers(0, 2**32))
def test_drawing_gives_the_same_chains_as_listing(space: Space, chain: Chain, seed: int) -> None:
    assert set(space.draw(chain, random.Random(seed))) == set(space.edits(chain))


def test_edits_come_in_canonical_order() -> None:
    space = Space.of(3, max_block=2, max_repeats=2, max_length=5)
    texts = [chain.format() for chain in space.edits(Chain.full(3))]
    repeats_of_one = ["0,0-2", "0-1,1-2", "0-2,2", "0,0,0-2", "0-1,1,1-2", "0-2,2,2"]
    assert texts == ["1-2", "0,2", "0-1", "2", "0", *repeats_of_one, "0-1,0-2", "0-2,1-2"]


def test_a_repeat_makes_extra_copies() -> None:
    space = Space.of(3, operations=("repeat",), max_length=9)
    assert Chain((0, 1, 2, 0, 1, 2, 0, 1, 2)) in space.edits(Chain.full(3))


@pytest.mark.parametrize(("num_layers", "num_edits"), [(28, 212), (36, 276)])
def test_one_extra_copy_gives_as_many_edits_as_published(num_layers: int, num_edits: int) -> None:
    assert len(Space.of(num_layers, max_repeats=1).edits(Chain.full(num_layers))) == num_edits


def test_skips_and_repeats_are_drawn_evenly() -> None:
    drawn = Space.of(12).draw(Chain.full(12), random.Random(0))
    lengths = [len(next(drawn)) for _ in range(40)]
    assert 10 <= sum(length < 12 for length in lengths) <= 30


def test_lengths_follow_from_the_number_of_layers() -> None:
    assert (Space.of(12).min_length, Space.of(12).max_length) == (1, 24)


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
        Space.of(12, **bounds)  # type: ignore[arg-type]


def test_a_model_without_layers_has_no_space() -> None:
    with pytest.raises(ChainError, match="0 layers"):
        Space.of(0)
