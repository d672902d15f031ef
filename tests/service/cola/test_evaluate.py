"""Evaluators on real engines: shared prefixes change the cost of a chain and nothing else."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pytest

from models.artifact import read_manifest
from models.chain import Chain
from models.errors import InputError, LengthError
from models.lm.tokenizer import Tokenizer
from service.backends.open import open_backend
from service.backends.protocol import Backend, Carry, Rows
from service.cola.evaluate import evaluator_for
from service.cola.evaluator import Answer
from service.cola.reward import reward_named
from service.cola.search import find_chain
from service.cola.space import CoLaSpace
from service.cola.task import Budget, Task
from service.engine.engine import Engine, EngineLimits
from service.engine.language import LanguageEngine
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Sampling
from service.engine.tensor import TensorEngine
from service.metrics import Metrics, ModelMetrics

_T = TypeVar("_T")
LIMITS = EngineLimits(Limits(8, 512), QueueLimits(256, 4096, 65536), max_chain_length=12, search_bytes=1 << 20)
BYTES = 1 << 20
PROMPT, ROW = "12+7=", [0.5, -1.0, 2.0, 0.25, -0.75, 1.5]
RANDOM = Random(1)
CHAINS = [Chain.full(3), *{Chain(tuple(RANDOM.choices(range(3), k=RANDOM.randint(1, 6)))) for _ in range(30)}]


class Counted:
    """A backend whose layer calls are counted: one per row and real token."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.layer_evaluations = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        self.layer_evaluations += len(self._backend.stream(carry)) if rows is None else int(rows.lengths.sum())
        return self._backend.layer(index, carry, rows)


Opened: TypeAlias = Callable[[str, str], AbstractAsyncContextManager[tuple[Any, Counted]]]


@pytest.fixture
def opened(tiny_repository: Path) -> Opened:
    """Opens the engine of a model on a runtime, with the counter on its layers."""

    @asynccontextmanager
    async def opening(model: str, runtime: str) -> Any:
        directory = tiny_repository / model / "1"
        manifest = read_manifest(directory)
        counted = Counted(open_backend(manifest, directory, runtime, num_pages=256))  # type: ignore[arg-type]
        metrics = ModelMetrics(Metrics(), model, "1")
        engine: Engine
        if manifest.language:
            tokenizer = Tokenizer(directory / manifest.language.tokenizer)
            engine = LanguageEngine(manifest, counted, LIMITS, metrics, tokenizer)  # type: ignore[arg-type]
        else:
            engine = TensorEngine(manifest, counted, LIMITS, metrics)  # type: ignore[arg-type]
        try:
            yield engine, counted
        finally:
            await engine.close()

    return opening


def run(work: Callable[[], Awaitable[_T]]) -> _T:
    async def waiting() -> _T:
        return await work()

    return asyncio.run(waiting())


def prefixes_of(chains: Sequence[Chain]) -> set[tuple[int, ...]]:
    return {chain.layers[:end] for chain in chains for end in range(1, len(chain) + 1)}


@pytest.mark.parametrize("runtime", ["fake", "onnx", "eager"])
@pytest.mark.parametrize("leaf_batch", [1, 8])
def test_text_that_shares_prefixes_gets_what_each_chain_gets_alone(
    opened: Opened, runtime: str, leaf_batch: int
) -> None:
    async def work() -> None:
        async with opened("tinylm", runtime) as (engine, counted):
            evaluator = evaluator_for(engine, PROMPT, 8, BYTES)
            expected = await evaluator.answer(CHAINS[3])
            for start in range(0, len(CHAINS), leaf_batch):
                chains = CHAINS[start : start + leaf_batch]
                before = counted.layer_evaluations
                shared = await evaluator.evaluate(chains, expected)
                assert sum(one.layer_evaluations for one in shared) == counted.layer_evaluations - before
                for chain, one in zip(chains, shared, strict=True):
                    (alone,) = await engine.score([(engine.encode(PROMPT), expected.token_ids)], [chain])
                    assert one.matches == alone.matches
                    assert one.layer_evaluations_naive == alone.layer_evaluations
            assert any(one.matches for one in await evaluator.evaluate(CHAINS, expected))

    run(work)


@pytest.mark.parametrize("runtime", ["fake", "onnx"])
def test_a_row_that_shares_prefixes_gets_what_each_chain_gets_alone(opened: Opened, runtime: str) -> None:
    async def work() -> None:
        async with opened("tinymlp", runtime) as (engine, counted):
            evaluator = evaluator_for(engine, ROW, 8, BYTES)
            expected = evaluator.target(2)
            shared = await evaluator.evaluate(CHAINS, expected)
            assert sum(one.layer_evaluations for one in shared) == counted.layer_evaluations
            answers = await evaluator.answers(CHAINS)
            for chain, one, said in zip(CHAINS, shared, answers, strict=True):
                alone = await evaluator.answer(chain)
                assert one.matches == alone.agrees_with(expected) == said.agrees_with(expected)
                assert said.agrees_with(alone)
                assert (said.confidence, said.margin) == pytest.approx((alone.confidence, alone.margin), abs=1e-5)
                assert one.matches == (one.lead is not None and one.lead > 0)

    run(work)


def test_a_prefix_is_run_once_and_forgetting_it_costs_time_only(opened: Opened) -> None:
    async def work() -> None:
        async with opened("tinylm", "fake") as (engine, counted):
            expected = Answer("", engine.target("19"))
            generous, stingy = (evaluator_for(engine, PROMPT, 8, size) for size in (BYTES, 2000))
            costs, seen = [], []
            for evaluator in (generous, stingy):
                before = counted.layer_evaluations
                evaluations = [(await evaluator.evaluate([chain], expected))[0] for chain in CHAINS]
                costs.append(counted.layer_evaluations - before)
                assert sum(one.layer_evaluations for one in evaluations) == costs[-1]
                seen.append([one.matches for one in evaluations])
            # The prompt along every chain, each further token only along those that say what comes before it.
            prompt, target = engine.encode(PROMPT), expected.token_ids
            cost, left = len(prompt) * len(prefixes_of(CHAINS)), CHAINS
            for judged in range(1, len(target)):
                scores = await engine.score([(prompt, target[:judged])] * len(left), left)
                left = [chain for chain, one in zip(left, scores, strict=True) if one.matches]
                cost += len(prefixes_of(left))
            assert costs[0] == cost
            assert costs[1] > costs[0]
            assert seen[0] == seen[1]

    run(work)


@pytest.mark.parametrize("max_bytes", [1, 2000, 20_000])
def test_prefixes_stay_within_their_bytes(opened: Opened, max_bytes: int) -> None:
    async def work() -> None:
        async with opened("tinylm", "fake") as (engine, _):
            evaluator = evaluator_for(engine, PROMPT, 8, max_bytes)
            expected = Answer("", engine.target("19"))
            cache = evaluator._cache
            await evaluator.evaluate(CHAINS[:1], expected)
            for start in range(0, len(CHAINS), 4):
                await evaluator.evaluate(CHAINS[start : start + 4], expected)
                roots = sum(size for (_, prefix), (_, size) in cache._carries.items() if not prefix)
                assert cache.num_bytes <= max(max_bytes, roots)
                assert cache.num_bytes == sum(size for _, size in cache._carries.values())

    run(work)


@pytest.mark.parametrize("reward", ["target", "agreement", "confidence", "margin", "consistency"])
def test_a_search_reports_the_layer_evaluations_that_were_made(opened: Opened, reward: str) -> None:
    async def work() -> None:
        async with opened("tinylm", "onnx") as (engine, counted):
            evaluator = evaluator_for(engine, PROMPT, 6, BYTES)
            target = evaluator.target("19") if reward == "target" else None
            task = Task(3, CoLaSpace.of(3), reward_named(reward), target, budget=Budget(simulations=40))
            result = await find_chain(task, evaluator)
            assert result.stats.layer_evaluations == counted.layer_evaluations
            assert result.stats.layer_evaluations_naive >= result.stats.layer_evaluations

    run(work)


def test_several_searches_side_by_side_report_together_what_was_made(opened: Opened) -> None:
    async def work() -> None:
        async with opened("tinylm", "fake") as (engine, counted):

            async def search(prompt: str) -> int:
                task = Task(3, CoLaSpace.of(3), reward_named("agreement"), budget=Budget(simulations=30))
                result = await find_chain(task, evaluator_for(engine, prompt, 6, BYTES))
                return result.stats.layer_evaluations

            spent = await asyncio.gather(*(search(prompt) for prompt in ("1+1=", "12+7=", "3*3=", "99-98=")))
            assert sum(spent) == counted.layer_evaluations

    run(work)


@pytest.mark.parametrize("reward", ["target", "agreement"])
@pytest.mark.parametrize("runtime", ["onnx", "eager"])
def test_certified_winners_do_not_depend_on_the_leaf_batch(opened: Opened, runtime: str, reward: str) -> None:
    async def work() -> None:
        async with opened("tinylm", runtime) as (engine, _):
            wanted = (await engine.generate([PROMPT], [1, 2, 0], Sampling(max_new_tokens=4)))[0]
            results = []
            for leaf_batch in (1, 3, 8, 64):
                evaluator = evaluator_for(engine, PROMPT, 4, BYTES)
                target = Answer("", wanted.token_ids) if reward == "target" else None
                space, budget = CoLaSpace.of(3, max_length=5), Budget(simulations=2000)
                task = Task(3, space, reward_named(reward), target, budget=budget, leaf_batch=leaf_batch)
                results.append(await find_chain(task, evaluator))
            for result in results:
                assert result.stopped_by == "exhausted"
                assert result.best.certified
                assert result.best.answer == await evaluator.answer(result.best.chain)
                assert [(one.reward, one.length) for one in result.pareto] == [
                    (one.reward, one.length) for one in results[0].pareto
                ]

    run(work)


@pytest.mark.parametrize("choices", [("3", "5", "8"), ("19", "7", "244")])
@pytest.mark.parametrize("runtime", ["fake", "onnx"])
def test_choices_are_compared_as_each_scored_alone(opened: Opened, runtime: str, choices: tuple[str, ...]) -> None:
    async def work() -> None:
        async with opened("tinylm", runtime) as (engine, counted):
            evaluator = evaluator_for(engine, PROMPT, 8, BYTES, choices)
            expected = evaluator.target(choices[1])
            shared = await evaluator.evaluate(CHAINS, expected)
            assert sum(one.layer_evaluations for one in shared) == counted.layer_evaluations
            prompt = engine.encode(PROMPT)
            for chain, one in zip(CHAINS, shared, strict=True):
                pairs = [(prompt, engine.tokenizer.encode(choice)) for choice in choices]
                scores = np.asarray([sum(j.logprobs) for j in await engine.score(pairs, [chain] * 3)])
                shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                assert one.lead == pytest.approx(shares[1] - max(shares[0], shares[2]), abs=1e-4)
                assert one.matches == (scores.argmax() == 1)
                said = await evaluator.answer(chain)
                assert (said.text, said.confidence) == (choices[scores.argmax()], pytest.approx(shares.max(), abs=1e-4))

    run(work)


def test_letters_read_the_prompt_once_and_decode_nothing(opened: Opened) -> None:
    async def work() -> None:
        async with opened("tinylm", "fake") as (engine, _):
            evaluator = evaluator_for(engine, PROMPT, 8, BYTES, ("1", "2", "3", "4"))
            (one,) = await evaluator.evaluate([Chain.full(3)], evaluator.target("4"))
            assert one.layer_evaluations == one.layer_evaluations_naive == 3 * len(engine.encode(PROMPT))

    run(work)


@pytest.mark.parametrize(("model", "sample"), [("tinylm", PROMPT), ("tinymlp", ROW)])
def test_the_influence_of_each_layer_is_that_of_the_full_pass(opened: Opened, model: str, sample: Any) -> None:
    async def work() -> None:
        async with opened(model, "eager") as (engine, counted):
            evaluator = evaluator_for(engine, sample, 8, BYTES, wants_influence=True)
            expected = await evaluator.answer(Chain.full(3))
            streams: list[Any] = []
            inner = counted._backend.layer

            def layer(index: int, carry: Carry, rows: Rows | None = None) -> Carry:
                after = inner(index, carry, rows)
                tokens = 1 if rows is None else int(rows.lengths[0])
                streams.append(
                    [
                        counted.stream(one)[0].reshape(-1, counted.stream(one).shape[-1])[:tokens]
                        for one in (carry, after)
                    ]
                )
                return after

            counted._backend.layer = layer  # type: ignore[method-assign]
            assert evaluator.influence == ()
            await evaluator.evaluate([Chain.full(3)], expected)
            influence = tuple(evaluator.influence)
            for (before, after), one in zip(streams[:3], influence, strict=True):  # what is read first, the prompt
                cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(before, after, strict=True)]
                assert one == pytest.approx(1 - np.mean(cosines), abs=1e-5)
            await evaluator.evaluate([Chain((2, 1))], expected)
            assert evaluator.influence == influence

    run(work)


def test_the_same_search_twice_is_the_same_whatever_is_remembered_between(opened: Opened) -> None:
    async def work() -> None:
        async with opened("tinylm", "onnx") as (engine, _):
            evaluator = evaluator_for(engine, PROMPT, 6, BYTES)
            task = Task(3, CoLaSpace.of(3), reward_named("agreement"), budget=Budget(simulations=60), top_k=60)
            first, second = await find_chain(task, evaluator), await find_chain(task, evaluator)
            assert (first.best, first.top) == (second.best, second.top)

    run(work)


@pytest.mark.parametrize(
    ("sample", "choices", "target", "words"),
    [
        (PROMPT, ("3", "3"), "3", "not two or more different texts"),
        (PROMPT, ("3", ""), "3", "not two or more different texts"),
        (PROMPT, ("3", "4"), "5", "'5' is none of the choices"),
        (PROMPT, (), 5, "neither a text nor a list of token ids"),
        ([ROW], ("3", "4"), "3", "the vocabulary has 0 to"),
        ({"a": 1}, (), "5", "the input is a dict"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    opened: Opened, sample: Any, choices: tuple[str, ...], target: Any, words: str
) -> None:
    async def work() -> None:
        async with opened("tinylm", "fake") as (engine, _):
            with pytest.raises(InputError, match=words):
                evaluator_for(engine, sample, 8, BYTES, choices).target(target)

    run(work)


def test_a_target_longer_than_the_context_is_refused(opened: Opened) -> None:
    async def work() -> None:
        async with opened("tinylm", "fake") as (engine, _):
            with pytest.raises(LengthError, match="the target has 101 tokens and at most"):
                evaluator_for(engine, PROMPT, 1000, BYTES).target("1" * 100)
            with pytest.raises(LengthError, match="do not fit"):
                evaluator_for(engine, PROMPT, 8, BYTES, ("1" * 60, "2"))

    run(work)


def test_a_classifier_has_its_classes_as_choices(opened: Opened) -> None:
    async def work() -> None:
        async with opened("tinymlp", "fake") as (engine, _):
            with pytest.raises(InputError, match="the classes of this model are its choices"):
                evaluator_for(engine, ROW, 8, BYTES, ("1", "2"))

    run(work)
