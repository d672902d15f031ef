"""The anytime loop on a fake evaluator whose answers are a function of the chain."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from models.chain import Chain
from models.errors import InputError
from service.cola.evaluator import Answer, Evaluation
from service.cola.mcts import MctsConfig
from service.cola.reward import reward_named
from service.cola.search import find_chain
from service.cola.space import CoLaSpace
from service.cola.task import Budget, Progress, Result, Task, derive_seed

NUM_LAYERS = 6
FULL = Chain.full(NUM_LAYERS)
WANTED = Answer("yes", (1,))


@dataclass
class FakeEvaluator:
    """Says yes on the chains that `says_yes` likes, and when run alone on no chain of `breaks`."""

    says_yes: Callable[[Chain], bool]
    breaks: Callable[[Chain], bool] = lambda _: False
    scored: list[list[Chain]] = field(default_factory=list)
    ran_alone: list[Chain] = field(default_factory=list)
    is_exact: bool = True
    influence: tuple[float, ...] = ()

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> list[Evaluation]:
        self.scored.append(list(chains))
        matches = [expected.token_ids == (int(self.says_yes(chain)),) for chain in chains]
        return [Evaluation(match, 2, 3 * len(chain)) for match, chain in zip(matches, chains, strict=True)]

    async def answers(self, chains: Sequence[Chain]) -> list[Answer]:
        self.scored.append(list(chains))
        return [self._says(self.says_yes(chain), len(chain)) for chain in chains]

    async def answer(self, chain: Chain) -> Answer:
        self.ran_alone.append(chain)
        return self._says(self.says_yes(chain) and not self.breaks(chain), len(chain))

    def _says(self, yes: bool, cost: int) -> Answer:
        return Answer("yes" if yes else "no", (int(yes),), cost, confidence=0.9 if yes else 0.6)


def task(reward: str = "target", budget: Budget | None = None, **changes: object) -> Task:
    fields: dict[str, object] = {
        "target": WANTED if reward == "target" else None,
        "budget": budget or Budget(simulations=100),
        "leaf_batch": 4,
        **changes,
    }
    space = fields.pop("space", CoLaSpace.of(NUM_LAYERS))
    return Task(NUM_LAYERS, space, reward_named(reward), **fields)  # type: ignore[arg-type]


def search(what: Task, evaluator: FakeEvaluator, clock: Callable[[], float] = lambda: 0.0) -> Result:
    return asyncio.run(find_chain(what, evaluator, clock=clock))


def keeps_0_and_5_and_repeats_2(chain: Chain) -> bool:
    return {0, 5} <= set(chain.layers) and chain.layers.count(2) > 1


def keeps_0_and_5(chain: Chain) -> bool:
    return {0, 5} <= set(chain.layers)


def test_a_target_the_full_chain_misses_is_found_and_certified() -> None:
    evaluator = FakeEvaluator(keeps_0_and_5_and_repeats_2)
    result = search(task(), evaluator)
    assert (result.full.chain, result.full.reward, result.full.answer.text) == (FULL, 0.0, "no")
    assert (result.best.reward, result.best.answer.text, result.best.certified) == (1.0, "yes", True)
    assert keeps_0_and_5_and_repeats_2(result.best.chain)
    assert result.oracle
    assert evaluator.ran_alone == [FULL, result.best.chain]


def test_the_winner_is_the_shortest_of_the_best() -> None:
    evaluator = FakeEvaluator(keeps_0_and_5_and_repeats_2)
    result = search(task(), evaluator)
    hits = [chain for batch in evaluator.scored for chain in batch if keeps_0_and_5_and_repeats_2(chain)]
    assert result.best.chain == min(hits, key=len)
    assert result.best.length == len(result.best.chain)


def test_agreement_finds_a_shorter_chain_without_a_label() -> None:
    result = search(task("agreement"), FakeEvaluator(keeps_0_and_5))
    assert result.best.length < NUM_LAYERS
    assert result.best.answer.token_ids == result.full.answer.token_ids
    assert (result.best.certified, result.oracle) == (True, False)


def test_agreement_returns_the_full_chain_when_no_shorter_one_agrees() -> None:
    result = search(task("agreement"), FakeEvaluator(lambda chain: set(chain.layers) == set(range(NUM_LAYERS))))
    assert result.best == result.full
    assert result.best.certified


def test_the_full_chain_agrees_with_itself_even_if_its_score_says_otherwise() -> None:
    # Alone the full chain says no, teacher-forced yes: rounding at a tie.
    result = search(task("agreement"), FakeEvaluator(lambda _: True, breaks=lambda chain: chain == FULL))
    assert (result.full.reward, result.best) == (1.0, result.full)


def test_nothing_found_gives_the_full_chain_uncertified() -> None:
    evaluator = FakeEvaluator(lambda _: False)
    result = search(task(), evaluator)
    assert result.best == result.full
    assert (result.best.certified, evaluator.ran_alone) == (False, [FULL])


def test_a_winner_that_fails_alone_gives_way_to_the_next() -> None:
    shortest = search(task(), FakeEvaluator(keeps_0_and_5_and_repeats_2)).best.chain
    evaluator = FakeEvaluator(keeps_0_and_5_and_repeats_2, breaks=lambda chain: chain == shortest)
    result = search(task(), evaluator)
    assert evaluator.ran_alone[:2] == [FULL, shortest]
    assert result.best.certified
    assert result.best.chain != shortest
    assert shortest not in [found.chain for found in result.pareto]


def test_after_eight_failures_the_full_chain_is_returned_uncertified() -> None:
    evaluator = FakeEvaluator(lambda chain: chain != FULL, breaks=lambda _: True)
    result = search(task(), evaluator)
    assert result.best == result.full
    assert not result.best.certified
    assert len(set(evaluator.ran_alone)) == len(evaluator.ran_alone) == 1 + 8


def test_the_simulations_budget_is_exact_and_every_chain_distinct() -> None:
    evaluator = FakeEvaluator(keeps_0_and_5)
    result = search(task(budget=Budget(simulations=50)), evaluator)
    scored = [chain for batch in evaluator.scored for chain in batch]
    assert (result.stopped_by, result.stats.simulations, result.stats.distinct_chains) == ("simulations", 50, 50)
    assert len(scored) == len(set(scored)) == 50
    assert [len(batch) for batch in evaluator.scored] == [1, *[4] * 12, 1]
    assert result.deterministic


def test_the_layer_evaluations_budget_stops_after_the_batch_that_meets_it() -> None:
    budget = Budget(simulations=None, layer_evaluations=40)
    result = search(task(budget=budget), FakeEvaluator(lambda _: False))
    # 6 for the full chain alone, 2 for it again, then 8 for each batch of four.
    assert (result.stopped_by, result.stats.layer_evaluations) == ("layer_evaluations", 40)
    assert result.deterministic


def test_a_result_that_time_cut_says_so() -> None:
    ticks = iter(range(1_000))
    result = search(task(budget=Budget(seconds=30)), FakeEvaluator(keeps_0_and_5), clock=lambda: next(ticks))
    assert (result.stopped_by, result.deterministic) == ("seconds", False)
    assert result.stats.seconds >= 30


def test_a_space_that_is_used_up_stops_the_search() -> None:
    space = CoLaSpace(num_layers=6, min_length=5, max_length=6, operations=("skip",))
    result = search(task(space=space), FakeEvaluator(keeps_0_and_5))
    assert (result.stopped_by, result.stats.simulations, result.deterministic) == ("exhausted", 1 + 6, True)


def test_costs_are_those_of_the_evaluator_with_certification() -> None:
    evaluator = FakeEvaluator(keeps_0_and_5_and_repeats_2)
    stats = search(task(), evaluator).stats
    alone = sum(map(len, evaluator.ran_alone))
    assert stats.layer_evaluations == alone + 2 * 100
    assert stats.layer_evaluations_naive == alone + 3 * sum(len(chain) for batch in evaluator.scored for chain in batch)


@pytest.mark.parametrize("reward", ["target", "agreement"])
def test_the_same_seed_and_simulations_give_the_same_result(reward: str) -> None:
    results = [search(task(reward, seed=9), FakeEvaluator(keeps_0_and_5_and_repeats_2)) for _ in range(2)]
    assert results[0] == results[1]


def test_a_larger_budget_continues_the_smaller_ones_search() -> None:
    small, large = FakeEvaluator(keeps_0_and_5), FakeEvaluator(keeps_0_and_5)
    search(task(budget=Budget(simulations=21)), small)
    search(task(budget=Budget(simulations=61)), large)
    assert large.scored[: len(small.scored)] == small.scored


def test_progress_is_told_after_every_batch() -> None:
    told: list[Progress] = []

    async def listen(progress: Progress) -> None:
        told.append(progress)

    evaluator = FakeEvaluator(keeps_0_and_5)
    result = asyncio.run(find_chain(task("agreement", Budget(simulations=41)), evaluator, listen))
    assert [progress.stats.simulations for progress in told] == list(range(1, 42, 4))
    assert told[0].best.chain == FULL
    assert told[-1].best.chain == result.best.chain
    assert told[-1].pareto == result.pareto
    lengths = [progress.best.length for progress in told]
    assert lengths == sorted(lengths, reverse=True)


def test_cancellation_passes_through_even_if_the_evaluator_never_waits() -> None:
    async def cancel_soon() -> int:
        evaluator = FakeEvaluator(lambda _: False)
        endless = asyncio.create_task(find_chain(task(budget=Budget(simulations=10**9)), evaluator))
        while len(evaluator.scored) < 5:
            await asyncio.sleep(0)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return len(evaluator.scored)

    assert asyncio.run(cancel_soon()) < 10


def test_an_error_of_the_evaluator_passes_through() -> None:
    class BrokenEvaluator(FakeEvaluator):
        async def answer(self, chain: Chain) -> Answer:
            raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        search(task(), BrokenEvaluator(keeps_0_and_5))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"simulations": None}, "no limit; set at least one of simulations, layer_evaluations, seconds"),
        ({"simulations": 0}, "simulations is 0; use a finite number above 0"),
        ({"layer_evaluations": -5}, "layer_evaluations is -5"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_an_impossible_budget_is_refused(limits: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Budget(**limits)  # type: ignore[arg-type]


def test_a_task_without_the_target_its_reward_needs_is_refused() -> None:
    with pytest.raises(InputError, match="reward 'target' has no target"):
        task(target=None)


def test_a_batch_of_no_leaves_is_refused() -> None:
    with pytest.raises(InputError, match="leaf_batch is 0; use 1 or more"):
        task(leaf_batch=0)


def test_the_first_hit_ends_a_search_that_asks_for_it() -> None:
    evaluator = FakeEvaluator(keeps_0_and_5_and_repeats_2)
    result = search(task(budget=Budget(simulations=100, stop="first"), leaf_batch=1), evaluator)
    assert (result.stopped_by, result.best.certified, result.deterministic) == ("first", True, True)
    assert [chain for batch in evaluator.scored for chain in batch][-1] == result.best.chain
    assert result.stats.simulations < 100


def test_a_full_chain_that_is_right_is_a_first_hit_but_agreeing_with_itself_is_not() -> None:
    budget = Budget(simulations=100, stop="first")
    right = search(task(budget=budget), FakeEvaluator(keeps_0_and_5))
    assert (right.stopped_by, right.best.chain, right.stats.simulations) == ("first", FULL, 1)
    agreeing = search(task("agreement", budget), FakeEvaluator(keeps_0_and_5))
    assert agreeing.stopped_by == "first"
    assert agreeing.best.length < NUM_LAYERS


def test_a_proof_ends_the_search_when_nothing_shorter_is_untried() -> None:
    space = CoLaSpace.of(NUM_LAYERS, operations=("skip",), max_length=NUM_LAYERS)
    evaluator = FakeEvaluator(keeps_0_and_5)
    budget = Budget(simulations=1000, stop="proof")
    result = search(task("agreement", budget, space=space, leaf_batch=1), evaluator)
    tried = {chain for batch in evaluator.scored for chain in batch}
    assert (result.stopped_by, result.best.chain) == ("proof", Chain((0, 5)))
    assert {Chain((layer,)) for layer in range(NUM_LAYERS)} <= tried
    assert len(tried) < 2**NUM_LAYERS - 1


def test_a_graded_reward_has_nothing_to_stop_at() -> None:
    with pytest.raises(InputError, match="'confidence' is graded and never complete; leave 'stop' out"):
        task("confidence", Budget(stop="first"))


def test_the_most_confident_answer_wins_and_is_certified_by_saying_it_again() -> None:
    result = search(task("confidence"), FakeEvaluator(keeps_0_and_5_and_repeats_2))
    assert (result.best.reward, result.best.answer.text, result.best.certified) == (0.9, "yes", True)
    assert not result.oracle


def test_the_vote_decides_after_the_last_chain() -> None:
    evaluator = FakeEvaluator(keeps_0_and_5)
    result = search(task("consistency", Budget(simulations=60)), evaluator)
    tried = [FULL, *(chain for batch in evaluator.scored for chain in batch)]
    votes = [keeps_0_and_5(chain) for chain in tried]
    majority = sum(votes) * 2 > len(votes)
    assert result.best.reward == max(sum(votes), len(votes) - sum(votes)) / len(votes)
    assert result.best.answer.text == ("yes" if majority else "no")
    assert result.best.length == min(len(chain) for chain, vote in zip(tried, votes, strict=True) if vote == majority)


def test_what_is_not_run_as_served_is_never_certified() -> None:
    result = search(task(), FakeEvaluator(keeps_0_and_5_and_repeats_2, is_exact=False))
    assert result.best.reward == 1.0
    assert not result.best.certified


def test_a_wrong_target_must_differ_from_the_truth() -> None:
    other = Answer("no", (0,))
    assert search(task("wrong_target", target=WANTED, truth=other), FakeEvaluator(keeps_0_and_5)).best.reward == 1.0
    with pytest.raises(InputError, match="has no truth to differ from"):
        task("wrong_target", target=WANTED)
    with pytest.raises(InputError, match="target 'yes' is the truth"):
        task("wrong_target", target=WANTED, truth=WANTED)


def test_the_best_chains_and_the_tree_are_told_when_asked_for() -> None:
    result = search(task(top_k=3, tree_nodes=10), FakeEvaluator(keeps_0_and_5))
    assert result.top[0].chain == result.best.chain
    ranks = [(-one.reward, one.length) for one in result.top]
    assert (len(ranks), ranks) == (3, sorted(ranks))
    assert (len(result.tree), result.tree[0].chain) == (10, FULL)
    assert (search(task(), FakeEvaluator(keeps_0_and_5)).tree, result.tree[0].visit_count) == ((), 100)


def test_the_prior_is_learned_from_the_full_chain() -> None:
    weak = FakeEvaluator(lambda _: False, influence=(0.5, 0.4, 0.3, 0.01, 0.02, 0.6))
    config = MctsConfig(prior=1.0, random_child=0.0)
    space = CoLaSpace.of(NUM_LAYERS, operations=("skip",), max_block=1)
    search(task(space=space, mcts=config, leaf_batch=1, budget=Budget(simulations=3)), weak)
    assert [batch[0].format() for batch in weak.scored] == ["0-5", "0-2,4-5", "0-3,5"]


def test_seeds_depend_on_the_global_seed_the_input_and_the_configuration_alone() -> None:
    space, config = CoLaSpace.of(6), MctsConfig()
    target, agreement = reward_named("target"), reward_named("agreement")
    seed = derive_seed(0, "1+1=", space, config, target)
    assert seed == derive_seed(0, "1+1=", CoLaSpace.of(6), MctsConfig(), reward_named("target"))
    others = [
        derive_seed(1, "1+1=", space, config, target),
        derive_seed(0, "1+2=", space, config, target),
        derive_seed(0, "1+1=", CoLaSpace.of(6, max_block=2), config, target),
        derive_seed(0, "1+1=", space, MctsConfig(exploration=1.0), target),
        derive_seed(0, "1+1=", space, config, agreement),
    ]
    assert len({seed, *others}) == 6
    released = MctsConfig(widening=None, walk="released")
    assert derive_seed(42, "1+1=", space, released, target) == 42
