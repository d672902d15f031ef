"""A model over 2 and 4 ranks is the model of one process, in every residual form, whatever chains are in a batch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.chain import Chain
from models.errors import BackendError
from models.lm import weights
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.residual import parse_form
from models.lm.rope import Rope
from models.parallel.group import Alone, Group
from service.backends.protocol import Array, Backend, Past, Rows
from service.engine.executor import Batch, Executor, pad
from tests.parallel.ranks import Ranks, ranks
from tests.parallel.served import Job, Said, Uncounted, continued_alone, continued_by_ranks, plain, sharded

LAYERS, VOCABULARY = 3, 19
# float64: sums in another order, of the largest number there is.
EXACT = 1e-12
# 19 words on 4 ranks are 5, 5, 5, 4; the 2 heads of keys and values are on two ranks each.
CONFIG = LMConfig(VOCABULARY, 32, 48, LAYERS, 4, 2, 64, rope=Rope(theta=200.0))
FORMS = (
    "standard",
    "parallel",
    "ladder",
    "ladder(slot)",
    "ladder:1-2",
    "ladder(slot):0,2",
    "desync-2x@{size}",
    "desync-4x@{size}",
    "desync-6x@{size}",
)
RANDOM = Random(0)
CHAINS = {
    "full": (0, 1, 2),
    "skip": (0, 2),
    "one": (1,),
    "loop": (0, 1, 1, 1, 2),
    "block-loop": (0, 1, 0, 1, 2),
    "reorder": (2, 1, 0),
    "random": tuple(RANDOM.choices(range(LAYERS), k=4)),
}
PROMPTS = tuple(tuple(RANDOM.choices(range(VOCABULARY), k=length)) for length in (5, 1, 9, 3, 7, 2, 6))
# Long prompts are read in pieces of 4 tokens; there are so few pages that somebody makes room and is read again.
JOB = Job(PROMPTS, tuple(map(Chain, CHAINS.values())), num_new=4, num_pages=32, max_prefill=4)


@pytest.fixture(scope="module", params=[2, 4], ids="ranks-{}".format)
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(request.param, tmp_path_factory.mktemp("ranks") / "store") as started:
        yield started


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def saved(models: Path, form: str) -> Path:
    """A checkpoint in float64, the same random weights for every form; far from small, so that forms differ."""
    directory = models / form
    if not directory.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Desync parts heads of keys and values evenly.
            config = replace(CONFIG, num_key_value_heads=4) if form.startswith("desync") else CONFIG
            model = LanguageModel(replace(config, residual=parse_form(form))).double()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.data.mul_(3.0 if name.startswith("layers") else 1.0)
        weights.save(model, directory)
    return directory


def assert_same(got: Said, wanted: Said) -> None:
    assert got.tokens == wanted.tokens
    for ours, theirs in zip(got.logits, wanted.logits, strict=True):
        assert np.abs(ours - theirs).max() <= EXACT * np.abs(theirs).max()


@pytest.mark.parametrize("form", FORMS)
def test_ranks_generate_what_one_process_does(form: str, group: Ranks, models: Path) -> None:
    directory = saved(models, form.format(size=group.size))
    wanted = continued_alone(directory, JOB)
    assert wanted.num_preemptions > 0
    for got in group.run(continued_by_ranks, directory, JOB):
        assert_same(got, wanted)
        assert got.num_preemptions == wanted.num_preemptions
    job = replace(JOB, prompts=PROMPTS[:3], chains=JOB.chains[3:6], num_new=4, num_pages=999, dtype=torch.float32)
    tokens = continued_alone(directory, job).tokens
    assert all(got.tokens == tokens for got in group.run(continued_by_ranks, directory, job))


def test_forms_are_told_apart(models: Path) -> None:
    """What the tests above could not miss: each form gives other logits."""
    job = replace(JOB, prompts=PROMPTS[2:3], chains=(Chain((0, 2, 1)),), num_new=1)
    forms = [form.format(size=2) for form in FORMS]
    logits = [continued_alone(saved(models, form), job).logits[0] for form in forms]
    distances = [np.abs(a - b).max() / np.abs(a).max() for i, a in enumerate(logits) for b in logits[:i]]
    assert min(distances) > 1e-3


@pytest.mark.parametrize("form", ["standard", "parallel", "ladder", "ladder(slot):0,2"])
def test_a_group_of_one_is_the_plain_model_to_the_last_bit(form: str, models: Path) -> None:
    directory = saved(models, form)
    wanted, got = continued_alone(directory, JOB), continued_by_ranks(Alone(), directory, JOB)
    assert got.tokens == wanted.tokens
    assert all((ours == theirs).all() for ours, theirs in zip(got.logits, wanted.logits, strict=True))


def chains(max_visits: int) -> st.SearchStrategy[Chain]:
    return st.lists(st.integers(0, LAYERS - 1), max_size=max_visits).map(lambda layers: Chain(tuple(layers)))


@given(
    rows=st.lists(st.tuples(chains(5), st.integers(1, 6)), min_size=1, max_size=4),
    ladder=st.sets(st.integers(0, LAYERS - 1), min_size=1),
    rule=st.sampled_from(["", "(slot)"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=5)
def test_random_chains_in_random_hybrids(
    rows: list[tuple[Chain, int]], ladder: set[int], rule: str, seed: int, group: Ranks, models: Path
) -> None:
    layers = "" if len(ladder) == LAYERS else f":{Chain(tuple(sorted(ladder))).format()}"
    directory = saved(models, f"ladder{rule}{layers}")
    random = Random(seed)
    prompts = [random.choices(range(VOCABULARY), k=length) for _, length in rows]
    along = tuple(chain for chain, _ in rows)
    wanted = read_alone(directory, prompts, along)
    for got in group.run(read_by_ranks, directory, prompts, along):
        assert np.abs(got - wanted).max() <= EXACT * np.abs(wanted).max()


def read_by_ranks(group: Group, directory: Path, prompts: list[list[int]], along: tuple[Chain, ...]) -> Array:
    return read(Executor(sharded(group, directory, 0, torch.float64), Uncounted()), prompts, along)


def read_alone(directory: Path, prompts: list[list[int]], along: tuple[Chain, ...]) -> Array:
    return read(Executor(plain(directory, 0, torch.float64), Uncounted()), prompts, along)


def read(executor: Executor, prompts: list[list[int]], along: tuple[Chain, ...]) -> Array:
    """The last logits of each prompt [B, V] and the mean of its stream [B, D], side by side."""
    token_ids, lengths = pad(prompts)
    batch = Batch({"token_ids": token_ids}, along, np.zeros_like(lengths), lengths, lengths[:, None] - 1)
    streams = executor.stream(batch)
    means = np.stack([stream[:length].mean(axis=0) for stream, length in zip(streams, lengths, strict=True)])
    return np.concatenate([executor.run(batch)["logits"][:, 0], means], axis=1)


@pytest.mark.parametrize("form", ["ladder", "desync-4x@{size}"])
def test_search_finds_earlier_tokens_in_the_carry(form: str, group: Ranks, models: Path) -> None:
    directory = saved(models, form.format(size=group.size))
    wanted = read_alone(directory, [list(PROMPTS[2])], (Chain((0, 2, 2, 1)),))[:, :VOCABULARY]
    for got, num_bytes in group.run(read_in_two_stages, directory, (0, 2, 2, 1)):
        assert np.abs(got - wanted).max() <= EXACT * np.abs(wanted).max()
        assert num_bytes > 0


def read_in_two_stages(group: Group, directory: Path, layers: tuple[int, ...]) -> tuple[Array, int]:
    return read_in_stages(sharded(group, directory, 0, torch.float64), layers)


def read_in_stages(backend: Backend, layers: tuple[int, ...]) -> tuple[Array, int]:
    """As a search reads: a prompt's first tokens by themselves, every visit's keys and values kept in its carry."""
    ids = PROMPTS[2]
    first, kept = np.asarray([ids[:5]]), []
    rows = Rows(np.zeros(1, np.int64), np.asarray([5]), keep=True)
    carry = backend.embed({"token_ids": first}, rows)
    for layer in layers:
        carry = backend.layer(layer, carry, rows)
        kept.append(backend.select(carry, np.asarray([0])))
    rest = Rows(np.asarray([5]), np.asarray([len(ids) - 5]))
    carry = backend.embed({"token_ids": np.asarray([ids[5:]])}, rest)
    for layer, past in zip(layers, kept, strict=True):
        carry = backend.layer(layer, carry, replace(rest, past=(Past(backend.join([past]), 5),)))
    num_bytes = backend.num_bytes(carry)
    return backend.head(carry, np.asarray([[len(ids) - 6]]))["logits"][:, 0], num_bytes


def test_a_form_of_other_ranks_is_refused(group: Ranks, models: Path) -> None:
    other = 6 - group.size
    directory = saved(models, f"desync-2x@{other}")
    message = f"desync-2x@{other} is a function of its {other} ranks and {group.size} were asked for; use {other}"
    with pytest.raises(BackendError, match=message):
        group.run(continued_by_ranks, directory, JOB)
