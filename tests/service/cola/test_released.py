"""The descent of the released code, by hand on small cases. Facts: docstring of `service.cola.released`."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from models.chain import Chain
from service.cola.mcts import MctsConfig, Search
from service.cola.presets import PRESETS
from service.cola.released import ReleasedSearch
from service.cola.space import CoLaSpace

CONFIG = PRESETS["polar-code"].mcts
# The order in which the released loop tries chains of 28 layers, lengths 16 to 32, seed 42, with the reward of `play`.
PINNED = ["0-27", "0-11,16-27", "1-11,16-27", "1-7,7-11,16-27", "1-3,3-11,16-18,18-27"]


def search(num_layers: int, config: MctsConfig = CONFIG, **bounds: int) -> ReleasedSearch:
    space = CoLaSpace.of(num_layers, max_repeats=1, deep_block=1, max_visits=2, **bounds)
    return ReleasedSearch(num_layers, space, config, seed=42)


def play(one: Search, simulations: int) -> list[Chain]:
    proposed: list[Chain] = []
    while len(proposed) < simulations and (chains := one.propose(1)):
        one.observe(chains[0], float(random.Random(chains[0].format()).random() < 0.2))
        proposed += chains
    return proposed


def test_one_random_child_of_a_new_node_is_tried() -> None:
    one = search(6)
    full, first = play(one, 2)
    assert full == Chain.full(6)
    # Python's generator from seed 42, over the root's children in order of their layers.
    children = sorted(CoLaSpace.of(6, max_repeats=1).edits(full))
    assert first == random.Random(42).choice(children)
    assert one.statistics().num_root_children == len(children)


def test_the_greedy_walk_passes_only_visited_children() -> None:
    one = search(8, replace(CONFIG, random_child=0.0))
    proposed = play(one, 6)
    # No child but the one that was tried is ever visited, so every simulation goes one deeper.
    assert one.statistics().max_depth == 5
    for before, after in pairwise(proposed[1:]):
        assert abs(len(before) - len(after)) == 1


def test_scores_are_those_of_the_last_visit_by_hand() -> None:
    one = search(8, replace(CONFIG, random_child=0.0))
    [_] = one.propose(1)
    one.observe(Chain.full(8), 0.0)
    [first] = one.propose(1)
    one.observe(first, 1.0)
    [second] = one.propose(1)
    one.observe(second, 0.0)
    node = one._root.children[first]
    # Mean reward 1/2 - 5 len / 8 + sqrt(2 ln(1 + 1) / 2): one simulation was counted before this one.
    assert node.bound == pytest.approx(0.5 - 5 * len(first) / 8 + 0.8325546111576977)
    assert node.children[second].bound == pytest.approx(-5 * len(second) / 8 + 1.1774100225154747)
    assert {child.bound for child in one._root.children.values() if child is not node} == {-float("inf")}


def test_hardly_anything_of_depth_one_is_evaluated() -> None:
    one = search(28, min_length=16, max_length=32)
    proposed = play(one, 101)
    depths = [one._nodes[chain].depth for chain in proposed]
    assert depths.count(1) == 1  # published re-run of the loop: 1 of 100
    assert 3 <= sorted(depths)[50] <= 6  # median 4
    assert 8 <= max(depths) <= 13


def test_the_first_chains_of_a_28_layer_model_are_pinned() -> None:
    tried = [chain.format() for chain in play(search(28, min_length=16, max_length=32), 5)]
    assert tried == PINNED


def test_it_proposes_nothing_twice_and_ends() -> None:
    one = search(4, min_length=3, max_length=5)
    proposed = play(one, 1000)
    assert len(proposed) == len(set(proposed)) < 1000
    assert one.propose(1) == []
    assert all(3 <= len(chain) <= 5 and max(map(chain.layers.count, chain.layers)) <= 2 for chain in proposed)
