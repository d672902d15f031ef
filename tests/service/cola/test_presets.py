"""A preset's name promises its semantics: the constants and what follows from them, by hand."""

import math

import pytest

from models.chain import Chain
from models.errors import InputError
from service.cola.mcts import MctsConfig, Search
from service.cola.presets import PRESETS, preset_named, released_lengths
from service.cola.released import ReleasedSearch
from service.cola.space import Space
from service.cola.spaces import make_space
from service.cola.task import Budget


def space_of(name: str, num_layers: int) -> Space:
    preset = preset_named(name)
    return make_space(preset.space, num_layers, preset.space_knobs(num_layers))


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("num_layers", [2, 6, 12, 28])
def test_every_preset_can_search_a_model_of_any_depth(name: str, num_layers: int) -> None:
    preset, space = PRESETS[name], space_of(name, num_layers)
    kind = ReleasedSearch if preset.mcts.walk == "released" else Search
    search = kind(num_layers, space, preset.mcts, preset.seed)
    for _ in range(4):
        for chain in search.propose(1):
            search.observe(chain, 0.0)
    assert search.statistics().num_proposed == 4


def test_cola_paper_is_the_papers_search_with_our_bounds() -> None:
    preset = preset_named("cola-paper")
    assert preset.mcts == MctsConfig(math.sqrt(2), 5.0, 0.1, widening=None)
    assert preset.budget == Budget(simulations=200)
    space = space_of("cola-paper", 28)
    # Published: 530 single edits of the full chain with up to 4 extra copies. k in 1..4 at 28, 27, 26, 25 places, each
    # skipped or copied 1 to 4 times: 5 * 106; block 4 copied 4 times has 44 visits, within the 56 that are ours.
    assert len(space.edits(Chain.full(28))) == 530
    assert (space.min_length, space.max_length) == (1, 56)
    # Its edits apply to edited chains alike.
    assert Chain((0, 1, 0, 2, 3)) in space_of("cola-paper", 4).edits(Chain((0, 1, 0, 1, 2, 3)))


def test_cola_paper_tries_all_children_before_any_is_followed() -> None:
    preset, space = preset_named("cola-paper"), space_of("cola-paper", 3)
    search = Search(3, space, preset.mcts, preset.seed)
    tried: list[Chain] = []
    for _ in range(1 + len(space.edits(Chain.full(3)))):
        tried += search.propose(1)
        search.observe(tried[-1], float(len(tried) % 2))
    assert set(tried) == {Chain.full(3), *space.edits(Chain.full(3))}


def test_polar_code_is_the_released_code() -> None:
    preset = preset_named("polar-code")
    assert (preset.mcts.walk, preset.mcts.random_child, preset.mcts.length_penalty) == ("released", 0.1, 5.0)
    assert preset.mcts.exploration == pytest.approx(math.sqrt(2))
    assert (preset.budget.simulations, preset.seed, preset.leaf_batch) == (100, 42, 1)
    space = space_of("polar-code", 28)
    # Skip 1-4 and repeat 1-4 once at 28, 27, 26 and 25 places: the published 212 candidates.
    assert len(space.edits(Chain.full(28))) == 212
    below = space.edits(Chain.full(28).skip(3, 4))
    assert {len(chain) for chain in below} == {23, 25}
    assert len(below) == 24 + 24
    # A layer at most twice: of 0,0,1-27 only the 27 others can be repeated, and 28 chains skip one visit.
    assert len(space.edits(Chain.full(28).repeat(0, 1, 1))) == 27 + 28


@pytest.mark.parametrize(
    ("num_layers", "lengths"),
    [(36, (24, 44)), (28, (16, 32)), (24, (16, 28)), (48, (36, 54)), (12, (8, 14)), (6, (4, 7)), (2, (1, 3))],
)
def test_released_lengths_are_the_listed_ones_else_their_middle(num_layers: int, lengths: tuple[int, int]) -> None:
    assert released_lengths(num_layers) == lengths


def test_drllm_is_the_papers_search() -> None:
    preset = preset_named("drllm")
    assert preset.mcts == MctsConfig(1.8, 3.0, 0.1, widening=None)
    assert preset.budget == Budget(simulations=50, stop="first")
    space = space_of("drllm", 4)
    texts = [chain.format() for chain in space.edits(Chain.full(4))]
    assert texts == [
        *("1-3", "2-3", "0,0-3"),
        *("0,2-3", "0,3", "0-1,1-3"),
        *("0-1,3", "0-1", "0-2,2-3"),
        *("0-2", "0-3,3"),
    ]
    assert (space.min_length, space.max_length) == (1, 8)


def test_default_is_ours() -> None:
    preset = preset_named("default")
    assert (preset.space, preset.mcts, preset.budget) == ("cola", MctsConfig(), Budget())


def test_an_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match="'best' is unknown; use one of cola-paper, default, drllm, polar-code"):
        preset_named("best")
