"""Continuous generation: rows join and leave, and nobody notices."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from models.artifact import Manifest
from models.chain import Chain
from models.errors import ChainError
from service.backends.open import open_backend
from service.engine.executor import Executor, pad
from service.engine.generate import Generator
from service.engine.queue import Limits
from service.engine.sampling import Sampling
from service.engine.work import Generated, GenerateWork

FULL = Chain.full(4)
CHAINS = (FULL, Chain((0, 3)), Chain((2, 2, 1)), Chain((3, 1, 0, 2, 0)), Chain((1,)))
LIMITS = Limits(max_rows=4, max_tokens=64)


class Uncounted:
    """A counter that does not count."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def generator(language_manifest: Manifest) -> Generator:
    return new_generator(language_manifest)


def new_generator(manifest: Manifest, num_pages: int = 200, limits: Limits = LIMITS, page_size: int = 4) -> Generator:
    backend = open_backend(manifest, Path(), "fake", num_pages=num_pages, page_size=page_size)
    return Generator(Executor(backend, Uncounted()), num_pages, page_size, limits)


def admit(generator: Generator, *works: GenerateWork) -> None:
    """Let all of them run."""
    for one in works:
        assert generator.sequences.admit_from([one]) is one


def work(
    loop: asyncio.AbstractEventLoop,
    prompt: Sequence[int],
    chain: Chain = FULL,
    eos: tuple[int, ...] = (),
    max_tokens: int = 48,
    **sampling: object,
) -> GenerateWork:
    return GenerateWork(
        future=loop.create_future(),
        prompt=tuple(prompt),
        chain=chain,
        sampling=Sampling(**{"max_new_tokens": 12, **sampling}),  # type: ignore[arg-type]
        eos_token_ids=eos,
        max_tokens=max_tokens,
        text_of=lambda ids: "".join(chr(ord("a") + token_id) for token_id in ids),
    )


def advance(generator: Generator) -> dict[GenerateWork, Generated]:
    """One step; those that ended."""
    ended = {}
    for works in generator.next_batches():
        for one, logits in zip(works, generator.logits(works), strict=True):
            if logits is not None and (answer := generator.take_token(one, logits)):
                generator.sequences.release(one)
                ended[one] = answer
    return ended


def alone(manifest: Manifest, one: GenerateWork) -> Generated:
    """The answer of a sequence with the whole model to itself."""
    generator = new_generator(manifest)
    admit(generator, one)
    while not (ended := advance(generator)):
        pass
    return ended[one]


def test_rows_join_and_leave_and_every_sequence_is_as_alone(
    language_manifest: Manifest, generator: Generator, loop: asyncio.AbstractEventLoop
) -> None:
    def works() -> list[GenerateWork]:
        return [
            work(loop, range(1, 2 + 3 * (i % 4)), CHAINS[i % 5], seed=i, temperature=i % 3, max_new_tokens=3 + 2 * i)
            for i in range(9)
        ]

    line, ended, met = works(), dict[GenerateWork, Generated](), set[tuple[bool, ...]]()
    order = list(line)
    while line or len(generator.sequences):
        while admitted := generator.sequences.admit_from(line):
            line.remove(admitted)
        met.add(tuple(bool(one.choices) for one in generator.sequences))
        ended.update(advance(generator))
    assert any(True in rows and False in rows for rows in met)  # newcomers met rows that decode
    for one, again in zip(order, works(), strict=True):
        assert ended[one].token_ids == alone(language_manifest, again).token_ids
    assert generator.sequences.tables.pages.num_used == 0


def test_luck_does_not_depend_on_neighbours(
    language_manifest: Manifest, generator: Generator, loop: asyncio.AbstractEventLoop
) -> None:
    lucky = work(loop, (1, 2, 3), temperature=5.0, seed=7)
    for one in (work(loop, (4,), temperature=5.0, seed=8), lucky, work(loop, (5, 5), temperature=5.0, seed=9)):
        admit(generator, one)
    while lucky not in (ended := advance(generator)):
        pass
    assert ended[lucky].token_ids == alone(language_manifest, work(loop, (1, 2, 3), temperature=5.0, seed=7)).token_ids
    other = alone(language_manifest, work(loop, (1, 2, 3), temperature=5.0, seed=8))
    assert ended[lucky].token_ids != other.token_ids


def test_tokens_are_those_of_recomputing_everything(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    for chain in CHAINS:
        sequence: tuple[int, ...] = (3, 1, 4)
        wanted: list[int] = []
        for _ in range(12):
            wanted += alone(language_manifest, work(loop, sequence, chain, max_new_tokens=1)).token_ids
            sequence = (3, 1, 4, *wanted)
        answer = alone(language_manifest, work(loop, (3, 1, 4), chain))
        assert (list(answer.token_ids), answer.finish_reason, answer.num_passes) == (wanted, "length", 12)


def test_sequence_ends_at_an_end_token(language_manifest: Manifest, loop: asyncio.AbstractEventLoop) -> None:
    tokens = alone(language_manifest, work(loop, (3, 1, 4))).token_ids
    answer = alone(language_manifest, work(loop, (3, 1, 4), eos=(99, tokens[4])))
    end = tokens.index(tokens[4]) + 1
    assert (answer.token_ids, answer.finish_reason) == (tokens[:end], "stop")


def test_sequence_ends_at_a_stop_string_across_tokens(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    plain = work(loop, (3, 1, 4))
    tokens = alone(language_manifest, plain).token_ids
    text = plain.text_of(tokens)
    stop = text[3:6]
    answer = alone(language_manifest, work(loop, (3, 1, 4), stop=("never", stop)))
    assert answer.token_ids == tokens[: text.index(stop) + 3]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(("max_new_tokens", "max_tokens", "count"), [(5, 48, 5), (1, 48, 1), (100, 8, 5), (100, 4, 1)])
def test_sequence_ends_at_its_limit_or_the_contexts(
    max_new_tokens: int, max_tokens: int, count: int, language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    answer = alone(language_manifest, work(loop, (3, 1, 4), max_new_tokens=max_new_tokens, max_tokens=max_tokens))
    assert (len(answer.token_ids), answer.finish_reason) == (count, "length")


def test_context_can_be_filled_to_the_last_token(
    language_manifest: Manifest, generator: Generator, loop: asyncio.AbstractEventLoop
) -> None:
    answer = alone(language_manifest, work(loop, [1] * 40, max_new_tokens=100))
    assert (len(answer.token_ids), answer.finish_reason) == (8, "length")


def test_nobody_is_admitted_without_row_and_pages(language_manifest: Manifest, loop: asyncio.AbstractEventLoop) -> None:
    sequences = new_generator(language_manifest, num_pages=10).sequences
    four_pages = work(loop, (1,), FULL)
    assert sequences.admit_from([four_pages]) is four_pages
    assert sequences.admit_from([work(loop, (1,), Chain((0, 1, 2)))]) is None  # 4 of 6 are for the first to grow
    two_pages = work(loop, (1,), Chain((0, 0)))
    assert sequences.admit_from([two_pages]) is two_pages
    few_rows = new_generator(language_manifest, limits=Limits(max_rows=1, max_tokens=64)).sequences
    assert few_rows.admit_from([work(loop, (1,), Chain((0,)))])
    assert few_rows.admit_from([work(loop, (1,), Chain((0,)))]) is None
    assert few_rows.tables.pages.num_used == 1


def test_prefill_is_bounded_in_tokens_and_the_rest_comes_next(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    generator = new_generator(language_manifest, limits=Limits(max_rows=4, max_tokens=64, max_prefill_tokens=20))
    works = [work(loop, range(1, 1 + length), Chain((0,))) for length in (10, 5, 9, 30)]
    admit(generator, *works)
    assert generator.next_batches() == [works[3:], works[:2]]  # 20 of the long one, two of ten each
    advance(generator)
    assert generator.next_batches() == [works[2:], works[:2]]
    assert works[3].num_left == 10
    advance(generator)
    assert generator.next_batches() == [works]


def test_overflow_is_an_error_of_the_chain(generator: Generator, loop: asyncio.AbstractEventLoop) -> None:
    logits = np.asarray([0.0, np.nan], dtype=np.float32)
    with pytest.raises(ChainError, match=r"0-3.*not finite"):
        generator.take_token(work(loop, (1,)), logits)


def test_every_choice_is_told_at_once(language_manifest: Manifest, loop: asyncio.AbstractEventLoop) -> None:
    one, told = work(loop, (3, 1, 4), max_new_tokens=4), list[int]()
    one.on_choice = lambda choice: told.append(choice.token_id)
    assert list(alone(language_manifest, one).token_ids) == told


def test_rows_are_padded_on_the_right() -> None:
    padded, lengths = pad([(5, 6), (7,), (1, 2, 3)])
    assert padded.tolist() == [[5, 6, 0], [7, 0, 0], [1, 2, 3]]
    assert lengths.tolist() == [2, 1, 3]
    assert padded.dtype == lengths.dtype == np.int64
