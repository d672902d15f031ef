"""The released code's cache: doubled for repeats, wrong for them, exact for skips."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from models.artifact import read_manifest
from models.chain import Chain
from models.lm.tokenizer import Tokenizer
from service.backends.open import open_backend
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array
from service.backends.reference_kv import ReferenceSequence, released_mask
from service.cola.reference import ReferenceEvaluator
from service.cola.reward import reward_named
from service.cola.search import find_chain
from service.cola.space import CoLaSpace
from service.cola.task import Budget, Task
from service.engine.engine import EngineLimits
from service.engine.executor import Batch, Executor
from service.engine.language import LanguageEngine
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Sampling
from service.metrics import Metrics, ModelMetrics

TOKENS = (3, 14, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7)
SKIPS = (Chain.full(3), Chain((0, 2)), Chain((1,)))
REPEATS = (Chain((0, 1, 1, 2)), Chain((0, 1, 0, 1, 2)))


@pytest.fixture(params=["onnx", "eager", "fake"])
def backend(request: pytest.FixtureRequest, tiny_repository: Path) -> LanguageBackend:
    directory = tiny_repository / "tinylm" / "1"
    opened = open_backend(read_manifest(directory), directory, request.param, num_pages=64)
    assert isinstance(opened, LanguageBackend)
    return opened


class Uncounted:
    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None: ...


def exact_logits(backend: LanguageBackend, chain: Chain, token_ids: tuple[int, ...]) -> Array:
    """Logits [V] after the last token, everything computed anew."""
    start, length = np.zeros(1, np.int64), np.asarray([len(token_ids)])
    batch = Batch({"token_ids": np.asarray([token_ids])}, (chain,), start, length, length[:, None] - 1)
    logits: Array = Executor(backend, Uncounted()).run(batch)["logits"][0, 0]
    return logits


def test_the_cache_of_a_repeated_layer_is_twice_as_long(backend: LanguageBackend) -> None:
    sequence = ReferenceSequence(backend, Chain((0, 1, 1, 2)))
    sequence.logits(TOKENS)
    assert [sequence.num_columns(layer) for layer in range(3)] == [13, 26, 13]
    sequence.logits((4,))
    assert [sequence.num_columns(layer) for layer in range(3)] == [14, 28, 14]


@pytest.mark.parametrize("chain", SKIPS, ids=str)
def test_chains_that_only_skip_are_exact(backend: LanguageBackend, chain: Chain) -> None:
    sequence = ReferenceSequence(backend, chain)
    for end in (10, 11, 12, 13):
        new = TOKENS[sequence.num_tokens : end]
        np.testing.assert_allclose(sequence.logits(new), exact_logits(backend, chain, TOKENS[:end]), atol=5e-5)


@pytest.mark.parametrize("chain", REPEATS, ids=str)
def test_chains_that_repeat_are_not(backend: LanguageBackend, chain: Chain) -> None:
    sequence = ReferenceSequence(backend, chain)
    difference = np.abs(sequence.logits(TOKENS[:12]) - exact_logits(backend, chain, TOKENS[:12])).max()
    assert difference > 0.01
    difference = np.abs(sequence.logits(TOKENS[12:]) - exact_logits(backend, chain, TOKENS)).max()
    assert difference > 0.01


def test_the_mask_is_causal_from_the_top_left_in_prefill_and_open_in_decode() -> None:
    second_visit = released_mask(3, 3)[0, 0].astype(int).tolist()
    assert second_visit == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert released_mask(3, 0)[0, 0].astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert released_mask(1, 6)[0, 0].astype(int).tolist() == [[1] * 7]


def test_a_search_with_it_counts_its_layers_and_certifies_nothing(tiny_repository: Path) -> None:
    async def work() -> None:
        directory = tiny_repository / "tinylm" / "1"
        manifest = read_manifest(directory)
        metrics = Metrics()
        limits = EngineLimits(Limits(8, 512), QueueLimits(64, 512, 8192), max_chain_length=12, search_bytes=1 << 20)
        engine = LanguageEngine(
            manifest,
            open_backend(manifest, directory, "onnx", num_pages=256),
            limits,
            ModelMetrics(metrics, "tinylm", "1"),
            Tokenizer(directory / "tokenizer.json"),
        )
        try:
            evaluator = ReferenceEvaluator(engine, "12+7=", 5, 0)
            task = Task(3, CoLaSpace.of(3), reward_named("agreement"), budget=Budget(simulations=30))
            result = await find_chain(task, evaluator)
            (skipping,) = await engine.generate(["12+7="], [0, 2], Sampling(max_new_tokens=5))
            assert (await evaluator.answer(Chain((0, 2)))).token_ids == skipping.token_ids
        finally:
            await engine.close()
        assert not result.full.certified
        assert not result.best.certified
        assert result.stats.layer_evaluations == result.stats.layer_evaluations_naive

    asyncio.run(work())
