"""Text in, text out: what is refused, what is counted, and that every way to ask gives the same answer."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from models.artifact import Manifest, read_manifest
from models.chain import Chain
from models.errors import ChainError, InputError, LengthError
from service.backends.open import BackendName, open_backend
from service.engine.language import Completion, LanguageEngine
from service.engine.sampling import Choice, Sampling
from service.metrics import Metrics

OpenLanguage = Callable[..., AbstractAsyncContextManager[LanguageEngine]]
PROMPTS = ("1+2=", "s310=", "7", "12*3-4=")
CHAINS = ("full", "0-1,1-3", "3,0", "2,2,2,0")


def ask(open_language: OpenLanguage, prompt: str | Sequence[int], **sampling: object) -> Completion:
    """One prompt along the full chain of the fake model."""

    async def run() -> Completion:
        async with open_language() as engine:
            return (await engine.generate([prompt], "full", Sampling(**sampling)))[0]  # type: ignore[arg-type]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("prompt", "error", "said"),
    [
        ("1" * 48, LengthError, "48 tokens do not fit; the model takes 48, so at most 47"),
        ([1] * 48, LengthError, "48 tokens do not fit"),
        ("", InputError, "the prompt is empty"),
        ([], InputError, "the prompt is empty"),
        ("1 + 2", InputError, r"no token for \[' '\]"),
        ("two=", InputError, r"no token for \['o', 't', 'w'\]"),
        ("1\n", InputError, "no token"),
        ("é=", InputError, "no token for .'é'.*use the model's own alphabet"),
        ("\ud800", InputError, "no token"),
        ("1\x00", InputError, "no token"),
        ([1, 18], InputError, "token 1 is 18; the vocabulary has 0 to 17"),
        ([-1], InputError, "token 0 is -1"),
        ([2**70], InputError, "token 0 is"),
    ],
)
def test_bad_prompt_is_named(prompt: object, error: type[Exception], said: str, open_language: OpenLanguage) -> None:
    with pytest.raises(error, match=said):
        ask(open_language, prompt)  # type: ignore[arg-type]


def test_one_bad_prompt_keeps_the_request_out_of_the_queue(open_language: OpenLanguage) -> None:
    async def run() -> None:
        metrics = Metrics()
        async with open_language(metrics=metrics) as engine:
            with pytest.raises(InputError):
                await engine.generate(["1+1=", "?"], "full", Sampling())
            with pytest.raises(ChainError, match="visit 1 names layer 9"):
                await engine.generate(["1+1=", "2"], [[0], [0, 9]], Sampling())
            assert metrics.registry.get_sample_value("fathom_layer_calls_total", LABELS) == 0

    asyncio.run(run())


LABELS = {"model": "words", "version": "1"}


def test_longest_prompt_gets_one_token(open_language: OpenLanguage) -> None:
    done = ask(open_language, "3" * 47)
    assert (len(done.token_ids), done.finish_reason, done.num_prompt_tokens) == (1, "length", 47)


def test_text_and_token_ids_are_the_same_prompt(open_language: OpenLanguage) -> None:
    text, ids = ask(open_language, "1+2="), ask(open_language, [2, 11, 3, 14])
    assert (text.token_ids, text.text) == (ids.token_ids, ids.text)


def test_text_ends_before_the_first_stop_string(open_language: OpenLanguage) -> None:
    plain = ask(open_language, "5-2=", max_new_tokens=12)
    cut = ask(open_language, "5-2=", max_new_tokens=12, stop=(plain.text[4:6], plain.text[3:5]))
    assert cut.finish_reason == "stop"
    assert plain.text.startswith(cut.text)
    assert plain.text[3:5] not in cut.text
    assert len(cut.text) == plain.text.index(plain.text[3:5])


def test_cost_counts_every_visit(open_language: OpenLanguage) -> None:
    async def run() -> None:
        metrics = Metrics()
        async with open_language(metrics=metrics) as engine:
            done = await engine.generate(PROMPTS, CHAINS, Sampling(max_new_tokens=5))
            for one in done:
                passes = len(one.token_ids)
                assert one.layers_executed == len(one.chain) * passes
                assert one.layers_full == 4 * passes
                assert one.layer_evaluations == len(one.chain) * (one.num_prompt_tokens + passes - 1)
            rows = [
                metrics.registry.get_sample_value("fathom_layers_executed_total", {**LABELS, "layer": str(layer)})
                for layer in range(4)
            ]
            assert rows == [
                sum(one.chain.layers.count(layer) * len(one.token_ids) for one in done) for layer in range(4)
            ]
            evaluations = metrics.registry.get_sample_value("fathom_layer_evaluations_total", LABELS)
            assert evaluations == sum(one.layer_evaluations for one in done)
            answered = metrics.registry.get_sample_value("fathom_layers_answered_total", LABELS)
            assert answered == sum(one.layers_executed for one in done) == sum(map(float, filter(None, rows)))

    asyncio.run(run())


def test_together_concurrently_and_alone_give_the_same_answers(open_language: OpenLanguage) -> None:
    sampling = Sampling(max_new_tokens=9, temperature=3.0, seed=5)

    async def run() -> None:
        async with open_language() as engine:
            together = await engine.generate(PROMPTS, CHAINS, sampling)
            pairs = list(zip(PROMPTS, CHAINS, strict=True))
            concurrently = await asyncio.gather(*(engine.generate([one], chain, sampling) for one, chain in pairs))
            alone = [await engine.generate([one], chain, sampling) for one, chain in pairs]
            wanted = [one.token_ids for one in together]
            assert [one.token_ids for (one,) in concurrently] == wanted
            assert [one.token_ids for (one,) in alone] == wanted

    asyncio.run(run())


def test_stream_tells_the_same_answer_token_by_token(open_language: OpenLanguage) -> None:
    async def run() -> None:
        async with open_language() as engine:
            (whole,) = await engine.generate(["1+2="], "2,2,1", Sampling(max_new_tokens=9))
            *events, done = [event async for event in engine.stream("1+2=", "2,2,1", Sampling(max_new_tokens=9))]
            assert isinstance(done, Completion)
            assert (done.token_ids, done.text) == (whole.token_ids, whole.text)
            told = [event for event in events if isinstance(event, tuple)]
            assert tuple(choice.token_id for _, choice in told if isinstance(choice, Choice)) == whole.token_ids
            assert "".join(text for text, _ in told) == whole.text

    asyncio.run(run())


def test_error_reaches_the_end_of_a_stream(open_language: OpenLanguage) -> None:
    async def run() -> None:
        async with open_language() as engine:
            with pytest.raises(LengthError):
                async for _ in engine.stream("1" * 48, "full", Sampling()):
                    pass

    asyncio.run(run())


def test_request_that_is_cancelled_leaves_no_future_behind(open_language: OpenLanguage) -> None:
    async def run() -> None:
        async with open_language() as engine:
            task = asyncio.ensure_future(engine.generate(PROMPTS, "full", Sampling(max_new_tokens=40)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await engine.generate(["1"], "full", Sampling(max_new_tokens=2))) == 1

    asyncio.run(run())


# Scoring.


def test_score_agrees_with_generation(open_language: OpenLanguage) -> None:
    async def run() -> None:
        async with open_language() as engine:
            for prompt, chain in zip(PROMPTS, CHAINS, strict=True):
                (done,) = await engine.generate([prompt], chain, Sampling(max_new_tokens=6))
                ids, other = engine.encode(prompt), (*done.token_ids[:-1], (done.token_ids[-1] + 1) % 18)
                right, wrong = await engine.score([(ids, done.token_ids), (ids, other)], [done.chain] * 2)
                assert right.matches
                assert not wrong.matches
                assert sum(right.logprobs) == pytest.approx(done.logprob, abs=1e-6)
                assert right.logprobs[:-1] == pytest.approx(wrong.logprobs[:-1])
                assert right.layers_executed == len(done.chain)
                assert right.layer_evaluations == len(done.chain) * (len(ids) + len(done.token_ids) - 1)
                assert right.num_prompt_tokens == len(ids)

    asyncio.run(run())


def test_score_of_ragged_targets_is_as_alone(open_language: OpenLanguage) -> None:
    pairs = [((1, 2, 3), (4, 5, 6, 7)), ((9,), (8,)), ((2, 2, 2, 2, 2), (3, 0))]
    chains = [Chain.full(4), Chain((0, 0, 1)), Chain((3,))]

    async def run() -> None:
        async with open_language() as engine:
            together = await engine.score(pairs, chains)
            for pair, chain, one in zip(pairs, chains, together, strict=True):
                (alone,) = await engine.score([pair], [chain])
                assert (one.logprobs, one.matches) == (alone.logprobs, alone.matches)

    asyncio.run(run())


def test_target_ends_with_the_end_token(open_language: OpenLanguage) -> None:
    async def run() -> None:
        async with open_language() as engine:
            assert engine.target("12") == (2, 3, 0)
            assert engine.target([5]) == (5, 0)
            assert engine.target("") == (0,)
            with pytest.raises(InputError, match="no token"):
                engine.target("twelve")

    asyncio.run(run())


def test_empty_target_of_a_model_without_end_token_is_refused(
    language_manifest: Manifest, open_language: OpenLanguage
) -> None:
    assert language_manifest.language is not None
    endless = language_manifest.language.model_copy(update={"eos_token_ids": ()})

    async def run() -> None:
        async with open_language(manifest=language_manifest.model_copy(update={"language": endless})) as engine:
            assert engine.target("12") == (2, 3)
            with pytest.raises(InputError, match="the target is empty"):
                engine.target("")

    asyncio.run(run())


# Trained shapes instead of arithmetic: served tokens are those of a plain loop in eager torch.


@pytest.mark.parametrize("name", ["onnx", "torchscript", "eager"])
def test_served_tokens_are_those_of_an_uncached_loop(
    name: BackendName, open_language: OpenLanguage, tiny_repository: Path, tiny_lm_checkpoint: Path
) -> None:
    import torch

    from models.checkpoint import load_checkpoint

    model, directory = load_checkpoint(tiny_lm_checkpoint), tiny_repository / "tinylm" / "1"
    manifest = read_manifest(directory)
    chains = ["full", "0-1,1-2", "2,0", "1,1,1,1", "2,1,0", "0-2,0-2"]
    prompts = ["1+2=", "s31029=", "7", "12*3-4=", "9-9=", "s1="]

    def plain(prompt: Sequence[int], chain: Chain) -> tuple[int, ...]:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and ids[-1:] != [0]:
            with torch.inference_mode():
                ids.append(int(model.along({"token_ids": torch.tensor([ids])}, chain)[0, -1].argmax()))
        return tuple(ids[len(prompt) :])

    async def run() -> None:
        backend = open_backend(manifest, directory, name, num_pages=96)
        async with open_language(backend, manifest) as engine:
            for one in await engine.generate(prompts, chains, Sampling(max_new_tokens=12)):
                prompt = engine.encode(prompts.pop(0))
                assert one.token_ids == plain(prompt, one.chain)

    asyncio.run(run())
