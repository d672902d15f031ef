"""The search on plain functions from chain to reward. Knows no model."""

import math
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import ChainError, InputError
from service.cola.ledger import Found, pareto_front
from service.cola.mcts import MctsConfig, Search, upper_bound
from service.cola.space import CoLaSpace, Space

ALL_CHILDREN = MctsConfig(widening=None)


def play(search: Search, reward: Callable[[Chain], float], simulations: int, leaf_batch: int = 1) -> list[Chain]:
    """Run a search and return what it proposed, in order."""
    proposed: list[Chain] = []
    while len(proposed) < simulations and (chains := search.propose(min(leaf_batch, simulations - len(proposed)))):
        for chain in chains:
            search.observe(chain, reward(chain))
        proposed += chains
    return proposed


def chance(chain: Chain) -> float:
    """A reward of 0 or 1 that depends on nothing but the chain."""
    return float(random.Random(chain.format()).random() < 0.2)


def reachable(space: Space, num_layers: int) -> set[Chain]:
    """Every chain that edits lead to, by brute force."""
    seen, waiting = {Chain.full(num_layers)}, [Chain.full(num_layers)]
    while waiting:
        new = set(space.edits(waiting.pop())) - seen
        seen |= new
        waiting += new
    return seen


def test_upper_bound_is_the_papers_by_hand() -> None:
    config = MctsConfig(exploration=1.5, length_penalty=5.0)
    # The root was passed 3 times, its two children once each: one of 3 visits that failed, one of 5 that did not.
    exploration = 1.5 * math.sqrt(1.0986122886681098)
    assert upper_bound(0.0, 1, 3, 3 / 4, config) == pytest.approx(exploration - 3.75)
    assert upper_bound(1.0, 1, 3, 5 / 4, config) == pytest.approx(1.0 + exploration - 6.25)
    assert upper_bound(1.0, 3, 3, 4 / 4, config) == pytest.approx(1 / 3 + 1.5 * 0.6051479953058623 - 5.0)


@pytest.mark.parametrize(("length_penalty", "follows_the_shorter"), [(5.0, True), (0.5, False)])
def test_the_child_with_the_highest_bound_is_followed(length_penalty: float, follows_the_shorter: bool) -> None:
    # Widths: 1 child after 1 visit of the root, 2 after 2 and 3. The fourth simulation must choose between them:
    # 3 visits, reward 0, against 5 visits, reward 1, so the shorter has the higher bound if lambda * 2/4 > 1.
    search = Search(
        4,
        CoLaSpace.of(4, max_block=1, max_repeats=1),
        MctsConfig(length_penalty=length_penalty, random_child=0.0, widening=1.0),
        seed=4,
    )
    _, first, second = play(search, lambda chain: float(len(chain) == 5), 3)
    assert {len(first), len(second)} == {3, 5}, "the seed must give one skip and one repeat"
    [fourth] = search.propose(1)
    assert len(fourth) in ({2, 4} if follows_the_shorter else {4, 6})
    followed = min(first, second, key=len) if follows_the_shorter else max(first, second, key=len)
    assert fourth in CoLaSpace.of(4, max_block=1, max_repeats=1).edits(followed)


def test_the_full_chain_comes_first() -> None:
    assert Search(6, CoLaSpace.of(6), MctsConfig(), 0).propose(3)[0] == Chain.full(6)


@pytest.mark.parametrize("config", [MctsConfig(), ALL_CHILDREN], ids=["widening", "all-children"])
@pytest.mark.parametrize("leaf_batch", [1, 8])
def test_no_chain_comes_twice_and_all_stay_within_bounds(config: MctsConfig, leaf_batch: int) -> None:
    space = CoLaSpace.of(8, min_length=5, max_length=11)
    proposed = play(Search(8, space, config, 1), chance, 500, leaf_batch)
    assert len(proposed) == len(set(proposed)) == 500
    assert all(5 <= len(chain) <= 11 for chain in proposed)


def test_it_branches_and_goes_deep() -> None:
    search = Search(12, CoLaSpace.of(12), MctsConfig(), 0)
    play(search, chance, 200)
    assert search.statistics().num_root_children > 10
    assert search.statistics().max_depth > 2


def test_widening_bounds_the_children_of_the_root() -> None:
    search = Search(12, CoLaSpace.of(12), MctsConfig(random_child=0.0, widening=2.0), 0)
    play(search, chance, 100)
    assert search.statistics().num_root_children == math.ceil(2 * math.sqrt(99))


def test_all_children_tries_every_edit_of_the_full_chain_before_going_deeper() -> None:
    space = CoLaSpace.of(5)
    edits = space.edits(Chain.full(5))
    search = Search(5, space, ALL_CHILDREN, 0)
    assert set(play(search, chance, 1 + len(edits))) == {Chain.full(5), *edits}
    assert search.statistics().max_depth == 1


@pytest.mark.parametrize("leaf_batch", [1, 64])
@pytest.mark.parametrize("config", [MctsConfig(), ALL_CHILDREN], ids=["widening", "all-children"])
def test_it_finds_the_brute_force_optimum_when_the_budget_covers_the_space(config: MctsConfig, leaf_batch: int) -> None:
    space = CoLaSpace.of(4, max_length=6)
    everything = reachable(space, 4)
    search = Search(4, space, config, 3)
    proposed = play(search, chance, 6_000, leaf_batch)
    assert set(proposed) == everything
    assert len(proposed) == len(everything)
    assert search.propose(1) == []
    best = max((chance(chain), -len(chain)) for chain in everything)
    assert (search.best().reward, -search.best().length) == best


@pytest.mark.parametrize("leaf_batch", [1, 8])
def test_the_same_seed_and_rewards_give_the_same_proposals(leaf_batch: int) -> None:
    def proposals(seed: int) -> list[Chain]:
        return play(Search(10, CoLaSpace.of(10), MctsConfig(), seed), chance, 120, leaf_batch)

    assert proposals(5) == proposals(5)
    assert proposals(5) != proposals(6)


def test_rewards_steer_the_search() -> None:
    def early_layers_kept(chain: Chain) -> float:
        return float(chain.layers[:6] == tuple(range(6)))

    blind = Search(12, CoLaSpace.of(12), MctsConfig(length_penalty=0.0), 0)
    seeing = Search(12, CoLaSpace.of(12), MctsConfig(length_penalty=0.0), 0)
    hits_blind = sum(map(early_layers_kept, play(blind, lambda _: 0.0, 300)))
    hits_seeing = sum(map(early_layers_kept, play(seeing, early_layers_kept, 300)))
    assert hits_seeing > 1.3 * hits_blind


def test_the_length_penalty_shortens_what_is_tried() -> None:
    def mean_length(length_penalty: float) -> float:
        proposed = play(Search(12, CoLaSpace.of(12), MctsConfig(length_penalty=length_penalty), 0), chance, 200)
        return sum(map(len, proposed)) / len(proposed)

    assert mean_length(5.0) < mean_length(0.0) - 1


def test_a_chain_that_two_edit_orders_make_is_one_node() -> None:
    space = CoLaSpace(num_layers=3, min_length=1, max_length=3, operations=("skip",), max_block=1)
    search = Search(3, space, MctsConfig(), 0)
    # Full, three of two visits, three of one visit; a tree would count the last three twice.
    assert len(play(search, chance, 100)) == search.statistics().num_proposed == 7
    assert search.statistics().num_edges == 3 + 3 * 2


def test_a_proposal_that_waits_for_its_reward_sends_the_next_one_elsewhere() -> None:
    # The root has two children, equal in length, reward and visits, and no room for a third.
    space = CoLaSpace(num_layers=8, min_length=1, max_length=8, operations=("skip",), max_block=1)
    search = Search(8, space, MctsConfig(random_child=0.0, widening=1.0), 0)
    _, first, second = play(search, lambda _: 0.0, 3)
    below_first, below_second = search.propose(2)
    assert below_first in set(space.edits(first)) - set(space.edits(second))
    assert below_second in set(space.edits(second)) - set(space.edits(first))
    assert search.statistics().num_pending == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=30))
def test_the_pareto_front_is_exact(points: list[tuple[int, int]]) -> None:
    found = [Found(Chain((number,) * length), float(reward)) for number, (reward, length) in enumerate(points)]
    front = pareto_front(found)
    expected = {(r, n) for r, n in points if not any((r2 >= r and n2 <= n and (r2, n2) != (r, n)) for r2, n2 in points)}
    assert {(one.reward, one.length) for one in front} == expected
    assert len(front) == len(expected)
    assert all(one == next(f for f in found if (f.reward, f.length) == (one.reward, one.length)) for one in front)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_front_of_a_search_is_that_of_all_it_saw(seed: int) -> None:
    def graded(chain: Chain) -> float:
        return random.Random(chain.format()).randrange(5) / 4

    search = Search(6, CoLaSpace.of(6), MctsConfig(), seed)
    seen = [Found(chain, graded(chain)) for chain in play(search, graded, 60, 4)]
    assert search.pareto() == pareto_front(seen)
    assert search.best() == min(seen, key=lambda one: (-one.reward, one.length))


def test_a_rejected_chain_gives_way_to_the_next_best() -> None:
    search = Search(4, CoLaSpace.of(4), MctsConfig(), 0)
    proposed = play(search, lambda _: 1.0, 30)
    shortest = search.best()
    search.reject(shortest.chain)
    rest = [Found(chain, 1.0) for chain in proposed if chain != shortest.chain]
    assert search.pareto() == pareto_front(rest)


def test_revised_rewards_replace_the_old_ones() -> None:
    search = Search(4, CoLaSpace.of(4), MctsConfig(), 0)
    proposed = play(search, lambda _: 1.0, 10)
    search.revise({proposed[3]: 2.0, Chain((9,)): 3.0})
    assert search.best() == Found(proposed[3], 2.0)
    assert len(search.top(100)) == 10


def test_the_bound_has_the_prior_by_hand() -> None:
    search = Search(4, CoLaSpace.of(4), MctsConfig(prior=2.0), 0)
    search.propose(1)
    search.observe(Chain.full(4), 0.0)
    search.inform((0.1, 0.2, 0.3, 0.4))
    node = search._create(Chain((0, 3, 3)), 1)
    node.visit_count = 3
    plain = upper_bound(0.0, 3, 1, 3 / 4, MctsConfig())
    # 0.1 + 0.4 of 1.0 retained, twice, over 1 + 3 visits.
    assert search._bound(node) == pytest.approx(plain + 2.0 * 0.5 / 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_an_outline_is_a_connected_part_of_the_graph(seed: int, max_nodes: int) -> None:
    search = Search(5, CoLaSpace.of(5), MctsConfig(), seed)
    proposed = play(search, chance, 50)
    tree = search.tree(max_nodes)
    assert len(tree) == len({node.chain for node in tree}) == min(max_nodes, 50)
    assert {node.chain for node in tree} <= set(proposed)
    assert tree[0].visit_count == 50
    reached = {0, *(child for node in tree for child in node.children)}
    assert reached == set(range(len(tree)))


def test_nothing_shorter_is_left_only_when_all_of_it_was_seen() -> None:
    space = CoLaSpace.of(3, operations=("skip",), max_block=1)
    search = Search(3, space, MctsConfig(), 0)
    told = []
    while chains := search.propose(1):
        search.observe(chains[0], float(len(chains[0]) == 2))
        seen_short = sum(one.length == 1 for one in search.top(10))
        told.append((search.best().length == 2 and seen_short == 3, search.has_no_shorter()))
    assert told[-1] == (True, True)
    assert all(expected == said for expected, said in told)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(reward: float) -> None:
    search = Search(4, CoLaSpace.of(4), MctsConfig(), 0)
    [chain] = search.propose(1)
    with pytest.raises(InputError, match="rewards are finite"):
        search.observe(chain, reward)
    search.observe(chain, 1.0)


def test_only_proposed_chains_are_observed_and_once() -> None:
    search = Search(4, CoLaSpace.of(4), MctsConfig(), 0)
    with pytest.raises(ChainError, match="'0-3' awaits no reward"):
        search.observe(Chain.full(4), 1.0)
    [chain] = search.propose(1)
    search.observe(chain, 1.0)
    with pytest.raises(ChainError, match="once"):
        search.observe(chain, 1.0)


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"exploration": -1.0}, "exploration is -1.0"),
        ({"exploration": math.nan}, "exploration is nan"),
        ({"length_penalty": math.inf}, "length_penalty is inf"),
        ({"random_child": 1.5}, "random_child is 1.5; use a probability"),
        ({"widening": 0.0}, "widening is 0.0"),
        ({"prior": -1.0}, "prior is -1.0"),
        ({"walk": "released"}, "walk 'released' opens all children"),
    ],
)
def test_constants_out_of_range_are_refused(constants: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        MctsConfig(**constants)


def test_a_deep_model_costs_little_to_search() -> None:
    started = time.process_time()
    play(Search(80, CoLaSpace.of(80), MctsConfig(), 0), chance, 200)
    # Measured at 12 ms; the margin is for busy machines, not for slower code.
    assert time.process_time() - started < 0.25
