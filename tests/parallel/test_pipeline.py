"""A model over stages, each of one rank or two, is the model of one process: every form, chain and order of stages.

All ranks do the same programs, as those of a server do. In threads what is summed up over ranks is NaN until somebody
has waited for it, so that nothing can be sent on before it is there.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.chain import Chain
from models.lm.residual import Residual, parse_form
from models.parallel.crossing import Crossing
from models.parallel.group import Alone, Group, Landed
from models.parallel.moving import moved
from models.parallel.staged import Staged, Station
from models.parallel.stages import NO_LAYER, Stages, deal
from models.parallel.stream import Output, Stream
from service.backends.protocol import Array, Backend, Rows
from service.backends.remote import RemoteBackend
from service.engine.executor import Batch, Executor, pad
from service.engine.plan import plan
from tests.parallel.pipelines import answer_here, led, open_here, threads
from tests.parallel.ranks import ranks
from tests.parallel.served import Job, Uncounted, continued_alone, generate, plain, staged
from tests.parallel.test_ranks import (
    CHAINS,
    CONFIG,
    EXACT,
    FORMS,
    JOB,
    LAYERS,
    PROMPTS,
    assert_same,
    read,
    read_alone,
    read_in_stages,
    saved,
)
from tests.parallel.threads import ThreadCrossing, on_stages

PIPELINES = {"PP2": (2, 1), "PP2xTP2": (2, 2), "PP3": (3, 1)}
# So few that somebody makes room on any of these pipelines, and each pool holds the longest sequence.
STAGED_JOB = replace(JOB, num_new=5, num_pages=36)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# Desync is a form of several ranks.
SERVED = [(form, name) for form in FORMS for name, (_, size) in PIPELINES.items() if "{size}" not in form or size > 1]


@pytest.mark.parametrize(("form", "pipeline"), SERVED)
def test_stages_generate_what_one_process_does(form: str, pipeline: str, models: Path) -> None:
    count, size = PIPELINES[pipeline]
    directory = saved(models, form.format(size=size))
    with threads(directory, deal(LAYERS, count), size, STAGED_JOB.num_pages) as (backend, _):
        got = generate(backend, STAGED_JOB)
    assert got.num_preemptions > 0
    assert_same(got, continued_alone(directory, STAGED_JOB))


@contextmanager
def processes(count: int, size: int, directory: Path, job: Job, store: Path) -> Iterator[RemoteBackend]:
    """A pipeline over gloo."""
    stages = deal(LAYERS, count)
    with ranks(count * size, store) as started:
        facts = started.run(open_here, directory, stages, job.num_pages, job.dtype)
        yield led(CONFIG, stages, size, facts, lambda body: started.run(answer_here, body))


@pytest.mark.parametrize(("pipeline", "form"), [("PP2xTP2", "ladder:1-2"), ("PP3", "standard")])
def test_stages_of_processes_do_so_too(pipeline: str, form: str, models: Path, tmp_path: Path) -> None:
    directory = saved(models, form)
    with processes(*PIPELINES[pipeline], directory, STAGED_JOB, tmp_path / "store") as backend:
        assert_same(generate(backend, STAGED_JOB), continued_alone(directory, STAGED_JOB))


@pytest.mark.parametrize("form", ["standard", "parallel", "ladder", "ladder:1-2"])
def test_greedy_tokens_are_those_of_one_process(form: str, models: Path) -> None:
    directory, job = saved(models, form), replace(STAGED_JOB, dtype=torch.float32)
    with threads(directory, deal(LAYERS, 2), 1, job.num_pages, job.dtype) as (backend, _):
        assert generate(backend, job).tokens == continued_alone(directory, replace(job, num_pages=999)).tokens


# What is sent: one message for each other stage that rows of a call come from, and what is late beside it.


@pytest.mark.parametrize("form", ["standard", "parallel", "ladder", "ladder:1-2", "ladder(slot):0,2", "desync-4x@2"])
def test_rows_are_sent_once_for_each_change_of_stage(form: str, models: Path) -> None:
    stages, chains = deal(LAYERS, 3), tuple(map(Chain, CHAINS.values()))
    token_ids, lengths = pad(PROMPTS)
    batch = Batch({"token_ids": token_ids}, chains, np.zeros_like(lengths), lengths, lengths[:, None] - 1)
    with threads(saved(models, form), stages, 2) as (backend, crossings):
        Executor(backend, Uncounted()).run(batch)
    width, wanted = CONFIG.hidden_size, dict[int, list[Any]]({0: [], 1: [], 2: []})
    for source, target, num_rows in messages(chains, stages, parse_form(form)):
        wanted[source].append((target, (num_rows, token_ids.shape[1], width)))
    for source in (0, 1):  # at the end the one token of each row whose logits are wanted
        left = sum(stages.of(chain.layers[-1]) == source for chain in chains)
        wanted[source].append((2, (left, 1, width)))
    for crossing in crossings:
        assert crossing.sent == wanted[crossing.stage]


def messages(chains: tuple[Chain, ...], stages: Stages, residual: Residual) -> Iterator[tuple[int, int, int]]:
    """Stage, next stage and rows, of every message of a batch, those counted twice whose last MLP is read later."""
    last = [NO_LAYER] * len(chains)
    for group in plan(chains):
        target = stages.of(group.layer)
        for source in range(stages.count):
            rows = [row for row in group.rows if stages.of(last[row]) == source]
            late = [row for row in rows if last[row] != NO_LAYER and is_late(residual, last[row], group.layer)]
            if rows and source != target:
                yield source, target, len(rows) + len(late)
        for row in group.rows:
            last[row] = group.layer


def is_late(residual: Residual, before: int, layer: int) -> bool:
    if residual.form != "ladder" or (residual.layers is not None and layer not in residual.layers):
        return False
    return residual.on_skip == "executed" or layer <= before + 1


# Whatever is done to carries, in whatever order.

carries = st.integers(0, 9)
some_rows = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("visit"), carries, st.integers(0, LAYERS - 1), some_rows),
        st.tuples(st.just("all"), carries, st.integers(0, LAYERS - 1), some_rows),
        st.tuples(st.just("join"), carries, carries, some_rows),
        st.tuples(st.just("pick"), carries, carries, some_rows),
    ),
    max_size=12,
)


@pytest.fixture(scope="module", params=["ladder:1-2", "desync-4x@2"])
def both(request: pytest.FixtureRequest, models: Path) -> Iterator[tuple[Backend, Backend]]:
    """One process and a pipeline of three stages of one layer."""
    directory = saved(models, request.param)
    with threads(directory, deal(LAYERS, 3), 2) as (backend, _):
        yield plain(directory, 0, torch.float64), backend


@given(steps=steps)
@settings(max_examples=20)
def test_any_order_of_visits_merges_and_joins_is_that_of_one_process(
    steps: list[tuple[str, int, int, list[int]]], both: tuple[Backend, Backend]
) -> None:
    (wanted, logits), (got, others) = (walked(backend, steps) for backend in both)
    for ours, theirs in ((got, wanted), (others, logits)):
        assert all(np.abs(a - b).max() <= EXACT * np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


def walked(backend: Backend, steps: list[tuple[str, int, int, list[int]]]) -> tuple[list[Array], list[Array]]:
    """The streams of all carries that some steps have made, and logits of the first and the last token of each row."""
    token_ids = np.asarray([PROMPTS[2][:3], PROMPTS[4][:3]])
    made, counts = [backend.embed({"token_ids": token_ids}, rows_of(2))], [2]
    for kind, first, second, chosen in steps:
        place = first % len(made)
        carry, count = made[place], counts[place]
        rows = np.asarray([row for row in chosen if row < count] or [0])
        if kind == "visit":
            part = backend.layer(second, backend.select(carry, rows), rows_of(len(rows)))
            made[place] = backend.merge(carry, rows, part)
        elif kind == "all":
            made.append(backend.layer(second, carry, rows_of(count)))
            counts.append(count)
        elif kind == "pick":
            made.append(backend.select(carry, rows))
            counts.append(len(rows))
        elif count + counts[second % len(made)] <= 8:
            made.append(backend.join([carry, made[second % len(made)]]))
            counts.append(count + counts[second % len(counts)])
    tokens = [np.asarray([[2, 0]] * count) for count in counts]
    logits = [backend.head(one, wanted)["logits"] for one, wanted in zip(made, tokens, strict=True)]
    return [backend.stream(one) for one in made], logits


def rows_of(count: int, keep: bool = False) -> Rows:
    return Rows(np.zeros(count, np.int64), np.full(count, 3), keep=keep)


@given(rows=st.lists(st.lists(st.integers(0, LAYERS - 1), max_size=5), min_size=1, max_size=4))
@settings(max_examples=10)
def test_random_chains_in_one_batch(rows: list[list[int]], both: tuple[Backend, Backend]) -> None:
    along = tuple(Chain(tuple(layers)) for layers in rows)
    wanted, got = (read(Executor(one, Uncounted()), list(PROMPTS[: len(rows)]), along) for one in both)
    assert np.abs(got - wanted).max() <= EXACT * np.abs(wanted).max()


@pytest.mark.parametrize(("form", "size"), [("ladder", 1), ("desync-4x@2", 2)])
def test_search_finds_earlier_tokens_on_their_stages(form: str, size: int, models: Path) -> None:
    directory, layers = saved(models, form), (0, 2, 2, 1)
    width = CONFIG.vocab_size
    wanted = read_alone(directory, [list(PROMPTS[2])], (Chain(layers),))[:, :width]
    with threads(directory, deal(LAYERS, 3), size) as (backend, _):
        got, num_bytes = read_in_stages(backend, layers)
    assert np.abs(got - wanted).max() <= EXACT * np.abs(wanted).max()
    assert num_bytes > 0


# Sizes are made up from the form, on every rank alike; here they are held against what there is.


@pytest.mark.parametrize("form", [*FORMS, "upper-bound"])
def test_sizes_are_those_of_what_is_held(form: str, models: Path) -> None:
    directory, places = saved(models, form.format(size=2)), on_stages(1, 2)

    def check(place: tuple[Group, Crossing]) -> None:
        backend, rows = staged(*place, directory, deal(LAYERS, 1), 0, torch.float64), rows_of(2, keep=True)
        for layers in ((), (0,), (2,), (0, 1), (1, 1, 0)):
            carry = backend.embed({"token_ids": np.asarray([[1, 2, 3], [4, 5, 6]])}, rows)
            for layer in layers:
                carry = backend.layer(layer, carry, rows)
            assert carry.hidden.nbytes == carry.hidden.here.nbytes
            assert all(one.nbytes == one.here.nbytes for one in carry.kept)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(check, places))


def test_rank_keeps_pages_for_its_own_layers_alone(models: Path) -> None:
    directory, stages = saved(models, "standard"), Stages((0, 1, LAYERS))
    sizes = []
    for stage in range(stages.count):
        crossing = ThreadCrossing(stage, 0, {})
        backend = staged(Alone(), crossing, directory, stages, 30, torch.float64)
        assert (backend.num_pages, backend.num_layers) == (30, LAYERS)
        sizes.append(len(backend._cache._paged[0]))
    (whole,) = {len(array) for array in plain(directory, 30, torch.float64)._cache._paged}
    assert sum(sizes) == whole + 2  # a page more on each stage, and heads twice as many as pages


def test_what_is_normed_before_it_is_added_is_normed_where_it_was_made() -> None:
    """The layer's norm stays behind; what waits for it is sent as it is added."""
    config = replace(CONFIG, residual=parse_form("ladder"))
    places, stages = on_stages(2, 1), deal(LAYERS, 2)
    numbers = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def move(place: tuple[Group, Crossing]) -> Stream | None:
        group, crossing = place
        here = Stream(torch.ones_like(numbers)) if crossing.stage == 0 else Stream(numbers[:0])
        if crossing.stage == 0:
            here = here.launched(Output(numbers.clone(), Landed(), lambda one: 2 * one, "mlp", 0))
        visits = np.zeros(2, np.int64)
        return moved(Staged(Station(config, stages, crossing, group), visits, visits + 1, here), 1)

    with ThreadPoolExecutor(2) as pool:
        sender, arrived = pool.map(move, places)
    assert sender is None
    assert arrived is not None
    assert torch.equal(arrived.landed, torch.ones_like(numbers))
    assert torch.equal(arrived.land().landed, 1 + 2 * numbers)
