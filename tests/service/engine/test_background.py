"""Search work on the device thread: shared, in stages, in slices; it changes no answer and waits for nobody's end."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from models.artifact import Manifest, read_manifest
from models.chain import Chain
from models.errors import BackendError
from service.backends.open import open_backend
from service.backends.protocol import Array, Backend, Carry, Rows
from service.engine.background import Background
from service.engine.engine import EngineLimits, new_future
from service.engine.executor import Batch, Executor
from service.engine.language import LanguageEngine
from service.engine.prefix import PrefixCache
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Sampling
from service.engine.shared import SharedAnswer, SharedSample, SharedWork, text_sample, text_stages
from service.engine.shared_runner import SharedRunner

PROMPT, TARGET = (3, 5, 12, 7, 11), (2, 9, 4, 4, 1, 16, 8, 3, 2, 0)
RANDOM = Random(3)
CHAINS = [Chain.full(3), *(Chain(tuple(RANDOM.choices(range(3), k=RANDOM.randint(1, 6)))) for _ in range(12))]
# Float32 sums in another order where keys and values were kept; whole numbers are exact.
TOLERANCE = {"fake": 0.0, "onnx": 1e-4, "torchscript": 1e-4, "eager": 1e-4}


class Calls:
    """Layer evaluations and layer calls."""

    def __init__(self) -> None:
        self.tokens = self.calls = 0

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        self.tokens += tokens
        self.calls += 1


def ended(slices: object) -> object:
    """What slices return in the end."""
    while True:
        try:
            next(slices)  # type: ignore[call-overload]
        except StopIteration as end:
            return end.value


def run(runner: SharedRunner, samples: Sequence[SharedSample], chains: Sequence[Chain]) -> list[SharedAnswer]:
    """The answers of samples whose work shares a batch."""
    loop = asyncio.new_event_loop()
    works = [SharedWork(future=loop.create_future(), sample=sample, chains=tuple(chains)) for sample in samples]
    loop.close()
    return ended(runner.run(works))  # type: ignore[return-value]


def at_once(backend: Backend, chain: Chain) -> Array:
    """Logits [T, V] before every target token, from one pass over the whole text."""
    read = np.asarray([(*PROMPT, *TARGET[:-1])])
    tokens = np.asarray([range(len(PROMPT) - 1, read.shape[1])])
    batch = Batch({"token_ids": read}, (chain,), np.asarray([0]), np.asarray([read.shape[1]]), tokens)
    return Executor(backend, Calls()).run(batch)["logits"][0]


@pytest.mark.parametrize("max_bytes", [0, 20_000, 1 << 24])
@pytest.mark.parametrize("runtime", list(TOLERANCE))
def test_a_text_read_in_stages_is_the_text_read_at_once(tiny_repository: Path, runtime: str, max_bytes: int) -> None:
    directory = tiny_repository / "tinylm" / "1"
    backend = open_backend(read_manifest(directory), directory, runtime)  # type: ignore[arg-type]
    runner = SharedRunner(backend, Calls())
    stages = text_stages(PROMPT, TARGET, PrefixCache(max_bytes))
    assert [len(stage.tokens) for stage in stages] == [1, 1, 2, 4, 2]
    answers = [run(runner, [stage], CHAINS)[0] for stage in stages]
    for place, chain in enumerate(CHAINS):
        staged = np.concatenate([answer.outputs[place]["logits"] for answer in answers])
        assert np.abs(staged - at_once(backend, chain)).max() <= TOLERANCE[runtime]
    backend.close()


def test_a_target_of_one_token_needs_one_stage_and_keeps_nothing() -> None:
    (stage,) = text_stages(PROMPT, TARGET[:1], PrefixCache(0))
    assert (stage.length, stage.keep) == (len(PROMPT), False)


@pytest.mark.parametrize("runtime", list(TOLERANCE))
def test_texts_of_other_lengths_share_a_batch_and_answer_as_alone(tiny_repository: Path, runtime: str) -> None:
    directory = tiny_repository / "tinylm" / "1"
    backend = open_backend(read_manifest(directory), directory, runtime)  # type: ignore[arg-type]
    runner = SharedRunner(backend, Calls())
    texts = [(PROMPT, TARGET), (PROMPT, TARGET[:1]), (PROMPT[::-1], TARGET[3:]), (PROMPT[:3], TARGET), (PROMPT, TARGET)]
    together, apart = ([text_stages(*text, PrefixCache(1 << 24)) for text in texts] for _ in range(2))
    for number in range(max(map(len, together))):
        places = [place for place, stages in enumerate(together) if number < len(stages)]
        answers = run(runner, [together[place][number] for place in places], CHAINS)
        for place, answer in zip(places, answers, strict=True):
            (alone,) = run(runner, [apart[place][number]], CHAINS)
            for one, other in zip(answer.outputs, alone.outputs, strict=True):
                assert np.abs(one["logits"] - other["logits"]).max() <= TOLERANCE[runtime]
    backend.close()


def test_what_is_forgotten_is_run_again_and_paid(tiny_repository: Path) -> None:
    directory = tiny_repository / "tinylm" / "1"
    backend = open_backend(read_manifest(directory), directory, "fake")
    spent = {}
    for max_bytes in (0, 1 << 24):
        calls, cache = Calls(), PrefixCache(max_bytes)
        runner = SharedRunner(backend, calls)
        answers = [run(runner, [stage], CHAINS[:4])[0] for stage in text_stages(PROMPT, TARGET, cache)]
        assert sum(answer.layer_evaluations for answer in answers) == calls.tokens
        assert cache.num_bytes <= max_bytes or not any(prefix for _, prefix in cache._carries)
        spent[max_bytes] = calls.tokens
    prefixes = {chain.layers[:end] for chain in CHAINS[:4] for end in range(1, len(chain) + 1)}
    assert spent[1 << 24] == len(prefixes) * (len(PROMPT) + len(TARGET) - 1)
    assert spent[0] > spent[1 << 24]


class Slow:
    """A backend that says which work its layer calls were for, and fails on a token that is 15."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self.on_call: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def layer(self, index: int, carry: Carry, rows: Rows | None = None) -> Carry:
        assert rows is not None
        self.calls.append("search" if rows.pages is None else "predict")
        self.on_call()
        return self.inner.layer(index, carry, rows)

    def embed(self, inputs: dict[str, Array], rows: Rows | None = None) -> Carry:
        if (inputs["token_ids"] == 15).any():
            raise RuntimeError("the bad token")
        return self.inner.embed(inputs, rows)


def searching(engine: LanguageEngine, *prompt: int, count: int = 8) -> "asyncio.Future[SharedAnswer]":
    rng = Random(str(prompt))
    chains = list(dict.fromkeys(Chain(tuple(rng.choices(range(4), k=8))) for _ in range(count)))
    sample = text_sample((*prompt, 1), 1, PrefixCache(1 << 20))
    return asyncio.ensure_future(engine.explore(sample, chains))


LIMITS = EngineLimits(Limits(8, 256), QueueLimits(64, 64, 2048), max_chain_length=8, search_bytes=1 << 20)


def test_between_two_tokens_a_search_makes_one_layer_call(
    language_manifest: Manifest,
    open_language: Callable[..., object],
) -> None:
    slow = Slow(open_backend(language_manifest, Path(), "fake", num_pages=120))

    async def work() -> None:
        async with open_language(slow, limits=LIMITS) as engine:  # type: ignore[attr-defined]
            begun, may_go_on = threading.Event(), threading.Event()

            def wait() -> None:
                begun.set()
                assert may_go_on.wait(20)

            slow.on_call = wait
            search = searching(engine, 1, 2, 3)
            assert await asyncio.to_thread(begun.wait, 20)
            prediction = asyncio.ensure_future(engine.generate([(4, 5)], "full", Sampling(max_new_tokens=6)))
            await asyncio.sleep(0.01)  # it is in the queue now
            may_go_on.set()
            await asyncio.gather(prediction, search)

    asyncio.run(work())
    calls = "".join(call[0] for call in slow.calls)
    first, last = calls.index("p"), calls.rindex("p")
    # Six passes of four layers with one call of the search between two passes.
    assert calls[first : last + 1] == "s".join(["pppp"] * 6)
    assert calls.count("s") > 7


def test_search_work_that_fails_fails_alone(
    language_manifest: Manifest, open_language: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(open_backend(language_manifest, Path(), "fake", num_pages=120))

    async def work() -> None:
        async with open_language(slow, limits=LIMITS) as engine:  # type: ignore[attr-defined]
            works = [searching(engine, *prompt, count=2) for prompt in ((1, 2, 3), (1, 15, 3), (3, 2, 1))]
            good, bad, other = await asyncio.gather(*works, return_exceptions=True)
            assert isinstance(bad, BackendError)
            assert "the bad token" in str(bad)
            for answer, prompt in ((good, (1, 2, 3)), (other, (3, 2, 1))):
                assert isinstance(answer, SharedAnswer)
                again = await searching(engine, *prompt, count=2)
                for one, alone in zip(answer.outputs, again.outputs, strict=True):
                    assert (one["logits"] == alone["logits"]).all()

    with caplog.at_level("CRITICAL", "fathom.engine"):
        asyncio.run(work())


def test_a_batch_nobody_waits_for_is_dropped(language_manifest: Manifest) -> None:
    async def work() -> None:
        calls = Calls()
        backend = open_backend(language_manifest, Path(), "fake")
        background = Background(SharedRunner(backend, calls))
        works = [
            SharedWork(future=new_future(), sample=text_sample((1, 2, 3), 1, PrefixCache(0)), chains=(Chain.full(4),))
            for _ in range(2)
        ]
        background.begin(works)
        background.advance()
        works[0].future.cancel()
        background.drop_abandoned()
        assert len(background) == 2
        works[1].future.cancel()
        background.drop_abandoned()
        assert (len(background), calls.calls) == (0, 1)

    asyncio.run(work())
