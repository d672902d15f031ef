"""The response cache: an answer from it is the one that running gives, bounded in bytes, and says what it is."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from service.engine.cache import ResponseCache, key_of
from service.engine.engine import EngineLimits
from service.engine.language import Completion
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Sampling
from service.engine.tensor import Inference
from service.engine.work import GenerateWork, Score, ScoreWork, Tensors, TensorWork, Timing, Work

CHAIN = Chain((0, 1))
ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
WARM = Sampling(max_new_tokens=6, temperature=1.0, seed=3)


def tensors(num_rows: int, value: float = 1.0) -> Tensors:
    return Tensors({"logits": np.full((num_rows, 16), value, np.float32)}, Timing(0.1, 0.2))


def test_oldest_answers_make_room_and_the_bound_holds() -> None:
    cache = ResponseCache(max_bytes=3000)
    for number in range(20):
        cache.put(bytes([number]), tensors(1, number))
        assert cache.num_bytes <= 3000
        assert cache.get(b"\0") is not None or number > 5
    assert cache.get(b"\1") is None
    assert len(cache) == 5
    cache.put(b"large", tensors(100))
    assert cache.get(b"large") is None
    assert len(cache) == 5


def test_same_key_is_kept_once() -> None:
    cache = ResponseCache(max_bytes=10_000)
    cache.put(b"key", tensors(1))
    before = cache.num_bytes
    cache.put(b"key", tensors(1))
    assert (cache.num_bytes, len(cache)) == (before, 1)


def test_kept_arrays_are_nobody_elses() -> None:
    cache, answer = ResponseCache(max_bytes=10_000), tensors(1)
    cache.put(b"key", answer)
    answer.outputs["logits"][:] = 7
    kept = cache.get(b"key")
    assert isinstance(kept, Tensors)
    assert (kept.outputs["logits"] == 1).all()
    assert kept.timing == Timing(0.0, 0.0, is_cached=True)
    with pytest.raises(ValueError, match="read-only"):
        kept.outputs["logits"][:] = 7


@pytest.fixture(scope="module")
def loop() -> Any:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def works(future: Any) -> list[Work]:
    """Each differs from the others in one thing that an answer depends on."""
    row = np.ones((1, 3), np.float32)
    tensor = [
        TensorWork(future=future, inputs={"x": array}, chains=(chain,))
        for array, chain in ((row, CHAIN), (row * 2, CHAIN), (row, Chain((1, 0))), (row.astype(np.float64), CHAIN))
    ]
    score = [
        ScoreWork(future=future, token_ids=token_ids, num_targets=count, chain=chain)
        for token_ids, count, chain in (((1, 2, 3), 1, CHAIN), ((1, 2, 3), 2, CHAIN), ((12, 3), 1, CHAIN))
    ]
    samplings = (WARM, replace(WARM, seed=4), replace(WARM, stop=("=",)), replace(WARM, logprobs=2))
    generate = [
        GenerateWork(
            future=future, prompt=(1, 2), chain=CHAIN, sampling=one, eos_token_ids=(), max_tokens=9, text_of=str
        )
        for one in samplings
    ]
    return [*tensor, *score, *generate]


def test_key_is_all_an_answer_depends_on_and_nothing_else(loop: Any) -> None:
    keys = [key_of(work) for work in works(loop.create_future())]
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(work) for work in works(loop.create_future())]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=60))
def test_what_is_found_is_what_was_put_last(made: list[tuple[str, int]]) -> None:
    cache, last = ResponseCache(max_bytes=8000), {}
    for name, num_rows in made:
        last[name] = num_rows
        cache.put(name.encode(), tensors(num_rows))
        found = {name: cache.get(name.encode()) for name in last}
        assert cache.num_bytes <= 8000
        for key, answer in found.items():
            assert answer is None or (isinstance(answer, Tensors) and len(answer.outputs["logits"]) == last[key])
        assert found[name] is not None


@pytest.fixture
def cached_limits() -> EngineLimits:
    """Limits of an engine that keeps its answers."""
    return EngineLimits(Limits(8, 256), QueueLimits(64, 64, 2048), 8, 1 << 20, response_cache_bytes=1 << 20)


def _values(done: Inference) -> dict[str, object]:
    return {name: array.tolist() for name, array in done.outputs.items()}


def test_rows_from_memory_are_the_same_and_executed_nothing(open_tensor: Any, cached_limits: EngineLimits) -> None:
    async def test() -> None:
        async with open_tensor(limits=cached_limits) as engine:
            many = ROWS * 10  # more than one batch
            first = await engine.infer(many, "0,1,1")
            again = await engine.infer(many, "0,1,1")
            assert (first.timing.is_cached, again.timing.is_cached) == (False, True)
            assert _values(again) == _values(first)
            other = await engine.infer(many, "0,1,2")
            assert not other.timing.is_cached
            assert _values(other) != _values(first)

    asyncio.run(test())


def test_texts_from_memory_are_the_same_streamed_or_not(open_language: Any, cached_limits: EngineLimits) -> None:
    async def test() -> None:
        async with open_language(limits=cached_limits) as engine:
            first = await engine.generate(["1+1=", "2+"], "full", WARM)
            assert all(one.layers_executed for one in first)
            new, again = await engine.generate(["3+", "2+"], "full", WARM)
            assert new.layers_executed
            assert (again.layers_executed, again.layer_evaluations) == (0, 0)
            assert (again.text, again.choices, again.layers_full) == (
                first[1].text,
                first[1].choices,
                first[1].layers_full,
            )
            *pieces, done = [one async for one in engine.stream("1+1=", "full", WARM)]
            assert isinstance(done, Completion)
            assert done.layers_executed == 0
            assert tuple(choice for _, choice in pieces) == first[0].choices
            (cold,) = await engine.generate(["1+1="], "full", replace(WARM, seed=4))
            assert cold.layers_executed

    asyncio.run(test())


def test_scores_from_memory_are_the_same(open_language: Any, cached_limits: EngineLimits) -> None:
    async def test() -> None:
        async with open_language(limits=cached_limits) as engine:
            pairs, chains = [((1, 2), (3,)), ((4, 5), (6,))], (CHAIN, CHAIN)
            first, again = await engine.score(pairs, chains), await engine.score(pairs, chains)
            assert [one.logprobs for one in again] == [one.logprobs for one in first]
            assert [one.layers_executed for one in again] == [0, 0]

    asyncio.run(test())


def test_score_is_a_score() -> None:
    cache = ResponseCache(max_bytes=10_000)
    cache.put(b"key", score := Score((-0.5,), (3,), Timing(0.1, 0.2)))
    assert cache.get(b"key") == replace(score, timing=Timing(0.0, 0.0, is_cached=True))
