"""The laws of generation under any pattern of arrivals, departures, chains and faults, with hardly any pages.

Every answer is what a plain loop along its chain gives, whoever shares its pages or takes them away meanwhile.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.artifact import Manifest
from models.chain import Chain
from models.errors import ChainError, LengthError
from service.backends.arrays import HostArrays
from service.backends.fake import open_fake
from service.backends.parts import LanguageBackend, Parts
from service.backends.protocol import Array
from service.engine.executor import Executor
from service.engine.generate import Generator
from service.engine.queue import Limits
from service.engine.sampling import Sampling, choose
from service.engine.work import Generated, GenerateWork

CHAINS = (Chain((0, 1, 2, 3)), Chain((0, 1, 3)), Chain((0, 1, 2, 2, 1, 3)), Chain((2,)), Chain((0, 1, 2, 3, 3)))
# Prompts begin with pieces of these, so that many begin alike.
TEXTS = ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), (1, 2, 3, 4, 9, 9, 9, 9, 1, 2, 3, 4))
OVERFLOWS = 17  # a token that leads to NaN
MAX_TOKENS = 24


@dataclass
class Counted:
    """What the executor reported."""

    visits: int = 0
    tokens: int = 0

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        self.visits += rows
        self.tokens += tokens


def overflowing(parts: Parts) -> Parts:
    """The parts of a model that cannot stand one token."""

    def embed(token_ids: Array, starts: Array, columns: Array) -> Sequence[Array]:
        hidden, *shared = parts.embed(token_ids, starts, columns)
        return np.where(token_ids[:, :, None] == OVERFLOWS, np.float32(np.nan), hidden), *shared

    return replace(parts, embed=embed)


@dataclass
class Stage:
    """A generator, those who wait for it, and what became of everybody."""

    manifest: Manifest
    num_pages: int
    page_size: int
    limits: Limits
    counted: Counted = field(default_factory=Counted)
    waiting: list[GenerateWork] = field(default_factory=list)
    seen: list[GenerateWork] = field(default_factory=list)
    ended: dict[GenerateWork, Generated | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.manifest.language
        parts = overflowing(open_fake(self.manifest))
        backend = LanguageBackend(parts, self.manifest.language, HostArrays(), self.num_pages, self.page_size)
        self.generator = Generator(Executor(backend, self.counted), self.num_pages, self.page_size, self.limits)
        self.sequences = self.generator.sequences

    def arrive(self, *works: GenerateWork) -> None:
        self.sequences.refuse_oversized(works)
        self.waiting.extend(works)
        self.seen.extend(works)

    def leave(self, work: GenerateWork) -> None:
        if work in self.waiting:
            self.waiting.remove(work)
        elif work in list(self.sequences):
            self.sequences.release(work)

    def step(self) -> list[list[GenerateWork]]:
        """What the device thread does in a turn; the batches it ran."""
        self.sequences.resume()
        while admitted := self.sequences.admit_from(self.waiting):
            self.waiting.remove(admitted)
        batches = self.generator.next_batches()
        for works in batches:
            for work, logits in zip(works, self.generator.logits(works), strict=True):
                if logits is not None:
                    self._take(work, logits)
        return batches

    def finish(self) -> None:
        """Step until nobody is left; every step brings somebody on."""
        for _ in range(5000):
            if not (self.waiting or len(self.sequences)):
                return
            assert self.step()
        raise AssertionError("the sequences do not come to an end")

    def _take(self, work: GenerateWork, logits: Array) -> None:
        try:
            answer = self.generator.take_token(work, logits)
        except ChainError:
            answer = None
        else:
            if answer is None:
                return
        self.sequences.release(work)
        self.ended[work] = answer


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def new_work(
    loop: asyncio.AbstractEventLoop, prompt: Sequence[int], chain: Chain, max_new: int, temperature: float = 0.0
) -> GenerateWork:
    return GenerateWork(
        future=loop.create_future(),
        prompt=tuple(prompt),
        chain=chain,
        sampling=Sampling(max_new_tokens=max_new, temperature=temperature, seed=len(prompt)),
        eos_token_ids=(0,),
        max_tokens=MAX_TOKENS,
        text_of=str,
    )


class PlainLoop:
    """Answers by reading everything again for every token, without a cache and without neighbours."""

    def __init__(self, manifest: Manifest) -> None:
        self._parts = overflowing(open_fake(manifest))
        self._logits = lru_cache(maxsize=None)(self._read)

    def answer(self, work: GenerateWork) -> tuple[int, ...] | None:
        tokens, chosen = list(work.prompt), list[int]()
        generator = np.random.Generator(np.random.Philox(work.sampling.seed))
        while len(chosen) < work.sampling.max_new_tokens and len(tokens) < work.max_tokens:
            logits = self._logits(tuple(tokens), work.chain)
            if not np.isfinite(logits).all():
                return None
            chosen.append(choose(logits, work.sampling, generator).token_id)
            tokens.append(chosen[-1])
            if chosen[-1] in work.eos_token_ids:
                break
        return tuple(chosen)

    def _read(self, tokens: tuple[int, ...], chain: Chain) -> Array:
        start, nothing = np.zeros(1, np.int64), np.zeros((1, 1, 0, 2), np.float32)
        hidden, *shared = self._parts.embed(np.asarray([tokens]), start, start[:0])
        for layer in chain.layers:
            hidden, _, _ = self._parts.layers[layer](hidden, *shared, nothing, nothing)
        logits: Array = self._parts.head(hidden)[0][0, -1]
        return logits


prompts = st.builds(
    lambda text, length, tail: (*text[:length], *tail),
    st.sampled_from(TEXTS),
    st.integers(1, 12),
    st.lists(st.sampled_from((5, 6, OVERFLOWS)), max_size=2),
)
arrivals = st.tuples(prompts, st.sampled_from(CHAINS), st.integers(1, 12), st.sampled_from((0.0, 0.0, 3.0)))
# One step: who arrives, and which of those seen so far leave.
patterns = st.lists(st.tuples(st.lists(arrivals, max_size=3), st.lists(st.integers(0, 30), max_size=1)), max_size=12)


@settings(max_examples=150)
@given(patterns, st.sampled_from((1, 2, 3, 4)), st.integers(0, 30), st.integers(1, 5), st.sampled_from((1, 5, 8, 64)))
def test_every_answer_is_the_plain_loops(
    language_manifest: Manifest,
    loop: asyncio.AbstractEventLoop,
    pattern: list[tuple[list[tuple[tuple[int, ...], Chain, int, float]], list[int]]],
    page_size: int,
    spare_pages: int,
    max_rows: int,
    max_prefill_tokens: int,
) -> None:
    one_sequence = -(-MAX_TOKENS // page_size) * max(map(len, CHAINS))
    limits = Limits(max_rows, 64, max_prefill_tokens)
    stage, plain = Stage(language_manifest, one_sequence + spare_pages, page_size, limits), PlainLoop(language_manifest)
    gone = set()
    for arrived, left in pattern:
        stage.arrive(*(new_work(loop, *one) for one in arrived))
        for place in left:
            if place < len(stage.seen) and stage.seen[place] not in stage.ended:
                stage.leave(stage.seen[place])
                gone.add(stage.seen[place])
        stage.step()
    stage.finish()
    for work in stage.seen:
        if work not in gone:
            answer = stage.ended[work]
            assert (answer.token_ids if answer else None) == plain.answer(work)
    # What is reported is what ran, and nothing is held by anybody.
    assert stage.counted.visits == sum(work.num_passes * len(work.chain) for work in stage.seen)
    assert stage.counted.tokens == sum(work.num_evaluated * len(work.chain) for work in stage.seen)
    pages = stage.sequences.tables.pages
    assert pages.num_used == 0
    assert pages.take([0] * pages.num_pages) is not None


def test_sequences_make_room_and_are_read_again(language_manifest: Manifest, loop: asyncio.AbstractEventLoop) -> None:
    stage, plain = Stage(language_manifest, 40, 2, Limits(8, 64, 64)), PlainLoop(language_manifest)
    works = [new_work(loop, (i, 3), CHAINS[0], 16, temperature=i % 2) for i in range(1, 6)]
    stage.arrive(*works)
    stage.finish()
    answers = [stage.ended[work] for work in works]
    assert [answer and answer.token_ids for answer in answers] == [plain.answer(work) for work in works]
    preemptions = [answer.num_preemptions for answer in answers if answer]
    assert preemptions[0] == 0  # the oldest never makes room
    assert sum(preemptions) > 0


def test_equal_beginnings_are_read_once_and_kept_once(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    stage, prompt = Stage(language_manifest, 100, 4, Limits(8, 64, 64)), TEXTS[0]
    first, again = (new_work(loop, prompt, CHAINS[0], 1) for _ in range(2))
    stage.arrive(first)
    stage.finish()
    assert (first.num_evaluated, first.num_cached) == (12, 0)
    stage.arrive(again)
    stage.finish()
    assert (again.num_evaluated, again.num_cached) == (4, 8)  # all but the last page, whose last token must be read
    longer = new_work(loop, (*prompt, 13, 14), CHAINS[0], 1)
    stage.arrive(longer)
    stage.finish()
    assert (longer.num_evaluated, longer.num_cached) == (2, 12)


def test_chains_share_the_pages_of_the_visits_they_have_in_common(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    stage, pages = Stage(language_manifest, 100, 4, Limits(8, 64, 64)), TEXTS[0]
    stage.arrive(first := new_work(loop, (*pages, 13), CHAINS[0], 6))
    stage.step()
    used = stage.sequences.tables.pages.num_used
    assert used == 4 * 4
    stage.arrive(other := new_work(loop, (*pages, 13), CHAINS[1], 6))  # agrees for two visits
    stage.step()
    assert stage.sequences.tables.pages.num_used == used + 3 * 4 - 2 * 3
    assert other.num_cached == 0  # the third visit has to read everything
    stage.finish()
    plain = PlainLoop(language_manifest)
    for work in (first, other):
        answer = stage.ended[work]
        assert answer
        assert answer.token_ids == plain.answer(work)


def test_simultaneous_equals_share_their_pages_in_the_end(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    stage = Stage(language_manifest, 100, 4, Limits(8, 64, 64))
    stage.arrive(*(new_work(loop, (*TEXTS[0], 13), CHAINS[0], 6) for _ in range(3)))
    stage.step()
    assert stage.sequences.tables.pages.num_used == 4 * (3 + 3)


def test_what_overflowed_is_not_shared(language_manifest: Manifest, loop: asyncio.AbstractEventLoop) -> None:
    stage = Stage(language_manifest, 100, 4, Limits(8, 64, 64))
    bad = new_work(loop, (1, 2, 3, OVERFLOWS, 5, 6, 7, 8, 9), CHAINS[0], 4)
    stage.arrive(bad)
    stage.finish()
    assert stage.ended[bad] is None
    assert stage.sequences.tables.pages.num_cached == 0


def test_long_prompt_stalls_nobody_for_more_than_a_piece(
    language_manifest: Manifest, loop: asyncio.AbstractEventLoop
) -> None:
    stage = Stage(language_manifest, 400, 2, Limits(8, 64, max_prefill_tokens=6))
    stage.arrive(decoding := new_work(loop, (3,), CHAINS[3], 12))
    decoding.eos_token_ids = ()
    stage.step()
    stage.arrive(long := new_work(loop, [1 + i % 16 for i in range(20)], CHAINS[0], 2))
    while not long.choices:
        before, tokens = len(decoding.choices), stage.counted.tokens
        stage.step()
        assert len(decoding.choices) == before + 1
        assert stage.counted.tokens - tokens <= 6 * len(CHAINS[0]) + len(decoding.chain)
    assert long.num_passes == 4
    stage.finish()
    answer = stage.ended[long]
    assert answer
    assert answer.token_ids == PlainLoop(language_manifest).answer(long)


def test_sequence_that_could_never_fit_is_refused(language_manifest: Manifest, loop: asyncio.AbstractEventLoop) -> None:
    stage = Stage(language_manifest, 11, 4, Limits(8, 64))
    stage.arrive(new_work(loop, (1, 2), CHAINS[3], 100))
    stage.arrive(new_work(loop, (1, 2), Chain((1, 2)), 19))
    with pytest.raises(LengthError, match=r"20 tokens .* 3 visits take 15 pages and there are 11.*FATHOM_KV_BYTES"):
        stage.arrive(new_work(loop, (1, 2), Chain((1, 2, 3)), 19))
    stage.finish()
