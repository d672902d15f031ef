"""The spaces around the full chain that are not CoLa's, each against a plain enumeration of what its paper allows."""

import random
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import ChainError
from service.cola.ordered import DrLLMSpace, PolarSpace
from service.cola.space import Space
from service.cola.spaces import SPACES, MenuSpace, make_space


def reachable(space: Space) -> set[Chain]:
    full = Chain.full(space.num_layers)
    seen, waiting = {full}, [full]
    while waiting:
        new = set(space.edits(waiting.pop())) - seen
        seen |= new
        waiting += new
    return seen


def programs(layer: int, num_layers: int, max_block: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut the layers from `layer` on into segments that are skipped, kept or passed twice."""
    if layer == num_layers:
        yield ()
    for size in range(1, min(max_block, num_layers - layer) + 1):
        segment = tuple(range(layer, layer + size))
        for rest in programs(layer + size, num_layers, max_block):
            yield from (rest, segment + rest, segment + segment + rest)


@pytest.mark.parametrize("max_block", [1, 2, 4])
def test_polar_holds_exactly_the_programs_of_segments(max_block: int) -> None:
    space = PolarSpace.of(5, max_block=max_block)
    every = {Chain(layers) for layers in programs(0, 5, max_block) if layers}
    assert reachable(space) == every
    assert [space.count_below(n) for n in range(12)] == [sum(len(chain) < n for chain in every) for n in range(12)]


def test_drllm_holds_exactly_the_single_decisions_with_short_skips() -> None:
    space = DrLLMSpace.of(5)
    every = set()
    for visits in product((0, 1, 2), repeat=5):
        if not any(visits[i : i + 3] == (0, 0, 0) for i in range(3)):
            every.add(Chain(tuple(layer for layer, count in enumerate(visits) for _ in range(count))))
    assert reachable(space) == every
    assert [space.count_below(n) for n in range(12)] == [sum(len(chain) < n for chain in every) for n in range(12)]


def test_drllm_by_hand() -> None:
    texts = [chain.format() for chain in DrLLMSpace.of(4).edits(Chain((0, 1, 1, 3)))]
    # 0 can be skipped or repeated; 1 was repeated; 2 is skipped already, so 3 may be skipped or repeated alone.
    assert texts == ["1,1,3", "0,0-1,1,3", "0-1,1", "0-1,1,3,3"]


def test_polar_by_hand() -> None:
    texts = [chain.format() for chain in PolarSpace.of(4, max_block=2).edits(Chain((0, 1, 1, 2, 3)))]
    assert texts == [
        *("1,1-3", "0,0-1,1-3"),
        *("0-1,1,3", "0-1,1", "0-1,1-2,2-3", "0-1,1-3,2-3"),
        *("0-1,1-2", "0-1,1-3,3"),
    ]


@given(
    st.sampled_from([PolarSpace.of(6), PolarSpace.of(6, min_edit_layer=2, max_length=8), DrLLMSpace.of(6)]),
    st.integers(0, 2**32),
    st.integers(0, 6),
)
def test_drawing_gives_the_same_chains_as_listing(space: Space, seed: int, depth: int) -> None:
    rng, chain = random.Random(seed), Chain.full(6)
    for _ in range(depth):
        chain = next(space.draw(chain, rng), chain)
    drawn = list(space.draw(chain, rng))
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == set(space.edits(chain))
    assert all(space.min_length <= len(one) <= space.max_length for one in drawn)


def test_weak_layers_are_skipped_first_in_order_too() -> None:
    drawn = DrLLMSpace.of(3, max_length=3).draw(Chain.full(3), random.Random(0), influence=(0.5, 0.1, 0.3))
    assert [one.format() for one in drawn] == ["0,2", "0-1", "0", "1-2", "2"]


def test_a_menu_holds_its_chains_and_the_full_one() -> None:
    space = make_space("menu", 4, {"chains": (Chain((0, 3)), Chain((3, 2, 1)), Chain.full(4), Chain((0, 3)))})
    assert space.edits(Chain.full(4)) == [Chain((0, 3)), Chain((3, 2, 1))]
    assert space.edits(Chain((0, 3))) == []
    assert set(space.draw(Chain.full(4), random.Random(0))) == {Chain((0, 3)), Chain((3, 2, 1))}
    assert (space.min_length, space.max_length, space.count_below(4)) == (2, 4, 2)


@pytest.mark.parametrize("chains", [(), (Chain.full(4),)])
def test_a_menu_of_nothing_is_refused(chains: tuple[Chain, ...]) -> None:
    with pytest.raises(ChainError, match="no chain but the full one"):
        MenuSpace.of(4, chains=chains)


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("tree", {}, "'tree' is unknown; use one of cola, drllm, menu, polar"),
        ("drllm", {"max_repeats": 2}, "'drllm' has no max_repeats; it takes max_length, min_edit_layer, min_length"),
        ("polar", {"max_block": 5}, "max_block is 5; use 1 to 4"),
        ("polar", {"min_length": 9, "max_length": 8}, "above max_length 8"),
        ("polar", {"min_length": 20, "max_length": 22}, "no segment of the 4 visits"),
        ("menu", {"chains": (Chain((0, 4)),)}, "layers 0 to 3"),
        ("cola", {"operations": ()}, "no operations"),
    ],
)
def test_an_impossible_space_is_refused(name: str, knobs: dict[str, object], words: str) -> None:
    with pytest.raises(ChainError, match=words):
        make_space(name, 4, knobs)


def test_a_model_that_is_served_whole_has_no_space() -> None:
    for name in SPACES:
        with pytest.raises(ChainError, match="0 layers"):
            make_space(name, 0, {})
