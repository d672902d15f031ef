"""Pages in several pools: each visit gets one of its layer's pool, all or none, and what is found is found in any."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import LengthError
from models.parallel.stages import Stages
from service.backends.pools import pools_of
from service.engine.admission import Admission
from service.engine.pools import Pools
from service.engine.queue import Limits
from service.engine.sampling import Sampling
from service.engine.sequences import Sequences
from service.engine.tables import Tables
from service.engine.work import GenerateWork

STAGES = Stages((0, 1, 3))
NUM_PAGES = 10  # three and seven


def pooled() -> Pools:
    return Pools(NUM_PAGES, pools_of(STAGES, NUM_PAGES))


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.booleans()), max_size=20))
def test_page_is_of_the_pool_of_its_layer_and_held_once(steps: list[tuple[list[int], bool]]) -> None:
    pools, held = pooled(), dict[int, int]()
    for layers, gives_back in steps:
        taken = pools.take(layers)
        left = {0: 3 - sum(page < 3 for page in held), 1: 7 - sum(page >= 3 for page in held)}
        fits = all(count <= left[stage] for stage, count in Counter(map(STAGES.of, layers)).items())
        assert (taken is not None) == fits
        for page, layer in zip(taken or (), layers if taken else (), strict=True):
            assert page not in held
            assert page in STAGES.pages(NUM_PAGES)[STAGES.of(layer)]
            held[page] = layer
        if gives_back:
            pools.give_back(held)
            held.clear()
        assert pools.num_used == len(held)


def test_pages_of_a_text_are_found_in_every_pool() -> None:
    tables, text, chain = Tables(pooled(), page_size=4), tuple(range(9)), Chain((0, 1))
    table = tables.open(text, chain, len(text))
    assert table
    tables.publish(table, text, len(text))
    tables.close(table)
    again = tables.open(text, Chain((0, 1, 2)), len(text))
    assert again
    assert again.num_shared.tolist() == [2, 2, 0]


def test_a_full_pool_is_full_whatever_the_others_have() -> None:
    tables = Tables(pooled(), page_size=4)
    first = tables.open((1, 2), Chain((0, 0)), 8)
    assert first
    assert tables.open((1, 2), Chain((0, 1)), 8, running=[Chain((0, 0))]) is None
    assert tables.open((1, 2), Chain((1, 2)), 8, running=[Chain((1, 1))]) is not None
    assert not tables.grow(first, 5)


def test_a_sequence_that_no_pool_could_hold_is_refused() -> None:
    limits = Limits(max_rows=4, max_tokens=100)
    sequences = Sequences(Tables(pooled(), page_size=4), limits, Admission())

    def work(chain: Chain) -> GenerateWork:
        return GenerateWork(
            future=asyncio.Future(loop=loop),
            prompt=(1,) * 4,
            chain=chain,
            sampling=Sampling(max_new_tokens=4),
            eos_token_ids=(),
            max_tokens=9,
            text_of=str,
        )

    loop = asyncio.new_event_loop()
    sequences.refuse_oversized([work(Chain((0, 1, 1, 1)))])
    with pytest.raises(LengthError, match=r"a chain of 2 visits take 4 pages and there are 3"):
        sequences.refuse_oversized([work(Chain((0, 0)))])
    loop.close()
