"""One sample on a real model: every search aims at what it says, and the controls aim at the wrong answer."""

import asyncio
from random import Random

import pytest

from models.chain import Chain
from models.errors import InputError
from service.cola.evaluator import Answer
from service.cola.space import CoLaSpace
from service.engine.sampling import Sampling
from service.settings import Settings
from service.study.controls import log_probability, random_chains
from service.study.dataset import Row
from service.study.sample import ALLOWED, StudyConfig
from service.study.worker import Job, Worker

# On the tiny model the full chain answers "38611" to the first; each other answer is that of some chain.
WRONG = Row(1, "4+7=", "36312", "add", 1, decoy="1222612")
RIGHT = Row(2, "9+5=", "5222", "add", 1, decoy="93222555")


def said(worker: Worker, row: Row, chain: str) -> str:
    async def generate() -> str:
        (done,) = await worker.engine.generate([row.sample], chain, Sampling(max_new_tokens=64))
        return done.text

    return worker._runner.run(generate())


@pytest.mark.parametrize("row", [WRONG, RIGHT])
def test_winners_say_what_their_search_wanted_when_run_alone(worker: Worker, row: Row) -> None:
    result = worker.study(row)
    aims = {"target": row.target, "decoy": row.decoy, "agreement": result.answer}
    assert (result.answer == row.target) == result.is_right
    assert all(any(found.chain for found in ways.values()) for ways in result.found.values())
    for aim, ways in result.found.items():
        for found in ways.values():
            if found.chain is not None:
                assert said(worker, row, found.chain) == aims[aim]


def test_controls_search_for_the_wrong_answer_as_often_as_for_the_right_one(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.study.recorder import Recorder

    tried: dict[str, int] = {}
    evaluate = Recorder.evaluate

    async def counted(self: Recorder, chains: list[Chain], expected: Answer) -> object:
        tried[expected.text] = tried.get(expected.text, 0) + len(chains)
        return await evaluate(self, chains, expected)

    monkeypatch.setattr(Recorder, "evaluate", counted)
    result = worker.study(WRONG)
    assert result.target != result.decoy != result.answer
    assert tried.keys() == {result.target, result.decoy, result.answer}
    assert tried[result.target] == tried[result.decoy]
    assert {aim: set(ways) for aim, ways in result.found.items()} == {
        "target": {*ALLOWED, "random"},
        "decoy": {*ALLOWED, "random"},
        "agreement": {"both"},
    }


def test_skip_only_never_repeats_and_repeat_only_never_skips(worker: Worker) -> None:
    found = worker.study(RIGHT).found["target"]
    skipped, repeated = (Chain.parse(found[way].chain or "0").layers for way in ("skip", "repeat"))
    assert len(set(skipped)) == len(skipped)
    assert set(repeated) == {0, 1, 2}


def test_record_counts_what_was_tried(worker: Worker) -> None:
    found = worker.study(RIGHT).found["target"]["both"]
    assert found.simulations == 60
    assert found.shortest[0] == (1, 3)  # the full chain, first and right
    assert found.length_within(1) == 3
    assert list(found.spent) == [25, 50, 60]
    assert 0 < found.spent[25] < found.spent[60] == found.layer_evaluations < found.layer_evaluations_naive


def test_same_seed_gives_the_same_result_and_another_seed_another_search(worker: Worker, tiny_repository) -> None:
    first, again = (worker.study(WRONG).model_copy(update={"seconds": 0.0}) for _ in range(2))
    assert first == again
    other = Worker(Job(Settings(repository=tiny_repository), "tinylm", StudyConfig(simulations=60, seed=1)))
    assert other.study(WRONG).found != first.found
    other.close()


def test_random_chains_are_distinct_and_begin_with_the_full_chain() -> None:
    space, full = CoLaSpace.of(4), Chain.full(4)
    chains = random_chains(space, full, 50, Random(0))
    assert chains[0] == full
    assert len(set(chains)) == len(chains) == 50
    assert all(space.min_length <= len(chain) <= space.max_length for chain in chains)


def test_small_space_ends_the_random_chains() -> None:
    chains = random_chains(CoLaSpace.of(2, operations=("skip",)), Chain.full(2), 50, Random(0))
    assert set(chains) == {Chain((0, 1)), Chain((0,)), Chain((1,))}


def test_exact_chance_of_an_answer_is_that_of_drawing_it(worker: Worker) -> None:
    """400 draws at temperature 2 of the likeliest first token, a digit and the end, against the exact chance."""

    async def both() -> tuple[float, float]:
        engine, prompt = worker.engine, "9+5="
        greedy = (await engine.generate([prompt], "full", Sampling(max_new_tokens=1)))[0]
        answer = Answer(greedy.text, greedy.token_ids)
        (chance,) = await log_probability(engine, prompt, answer, (2.0,))
        drawn = [Sampling(max_new_tokens=1, temperature=2.0, seed=seed) for seed in range(400)]
        done = await asyncio.gather(*(engine.generate([prompt], "full", one) for one in drawn))
        return chance, sum(one.token_ids == answer.token_ids for (one,) in done) / 400

    chance, share = worker._runner.run(both())
    assert share == pytest.approx(2.718281828**chance, abs=0.08)


def test_classifier_searches_for_classes(tiny_repository) -> None:
    worker = Worker(Job(Settings(repository=tiny_repository), "tinymlp", StudyConfig(simulations=30)))
    result = worker.study(Row(1, [0.1, 0.9, 0.3, 0.7, 0.5, 0.2], 1))
    assert result.log10_answers == pytest.approx(0.60206)
    assert result.decoy not in (result.target, result.answer)
    assert (result.sample_once, result.sample_each) == (0, 3)
    worker.close()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Row(7, "4+7=", "1" * 80), "line 7: the target has 81 tokens"),
        (Row(8, "4?7=", "1"), "line 8: "),
        (Row(9, [1.0], 1), "line 9: "),
    ],
)
def test_row_the_model_cannot_take_is_named_by_its_line(worker: Worker, row: Row, words: str) -> None:
    with pytest.raises(InputError, match=words):
        worker.check(row)


def test_preset_without_skips_and_repeats_is_refused() -> None:
    with pytest.raises(InputError, match="preset 'drllm' cannot search without skips"):
        StudyConfig(preset="drllm")
