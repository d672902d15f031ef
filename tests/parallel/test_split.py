"""What each rank has of a checkpoint: of every architecture its slices, nothing else read, and together the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from exporters.passes.drop import drop
from exporters.passes.low_rank import low_rank
from models.chain import Chain
from models.errors import ArtifactError, BackendError
from models.lm import weights
from models.lm.config import LMConfig
from models.lm.sources import Fused, Source, Stacked, Whole
from models.parallel.group import Alone, Group
from models.parallel.split import Place, local_config
from models.parallel.stages import Stages
from models.parallel.weights import load_shard
from models.shards import Cut, Shards
from service.engine.executor import Batch, Executor
from tests.contracts.decoders import DECODERS, NUM_LAYERS, VOCABULARY, Decoder, make
from tests.parallel.pipelines import threads
from tests.parallel.served import Uncounted
from tests.parallel.threads import Silent, on_threads

EXACT = 1e-12
CHAINS = (Chain.full(NUM_LAYERS), Chain((2, 0, 1, 1)))
# Longer than every window.
IDS = torch.randint(1, VOCABULARY - 1, (2, 12), generator=torch.Generator().manual_seed(0))
# As our own passes leave them: projections of low rank, and layers that lost a half.
REWRITTEN: dict[str, Callable[[Path, Path], None]] = {
    "low-rank": lambda checkpoint, target: low_rank(checkpoint, target, 0.5),
    "without-mlp": lambda checkpoint, target: drop(checkpoint, target, [1], unit="mlp"),
    "without-attention": lambda checkpoint, target: drop(checkpoint, target, [2], unit="attention"),
}


@pytest.fixture(scope="module", params=[*DECODERS, *REWRITTEN], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("decoder")
    if isinstance(request.param, Decoder):
        make(request.param, directory)
        return directory
    make(next(one for one in DECODERS if one.name == "llama-biased-tied"), directory / "plain")
    REWRITTEN[request.param](directory / "plain", directory / "rewritten")
    return directory / "rewritten"


@pytest.mark.parametrize("size", [2, 4])
def test_logits_of_all_ranks_are_the_models(size: int, checkpoint: Path) -> None:
    model = weights.load(checkpoint, torch.float64)

    def along(group: Group) -> list[Tensor]:
        shard = load_shard(checkpoint, group, torch.float64)
        with torch.no_grad():
            return [shard.along({"token_ids": IDS}, chain) for chain in CHAINS]

    with torch.no_grad():
        wanted = [model.along({"token_ids": IDS}, chain) for chain in CHAINS]
    for got in on_threads(size, along):
        for ours, theirs in zip(got, wanted, strict=True):
            assert (ours - theirs).abs().max() <= EXACT * theirs.abs().max()


def test_a_group_of_one_has_the_models_own_bits(checkpoint: Path) -> None:
    model, shard = weights.load(checkpoint), load_shard(checkpoint, Alone())
    with torch.no_grad():
        for chain in CHAINS:
            assert torch.equal(shard.along({"token_ids": IDS}, chain), model.along({"token_ids": IDS}, chain))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each read of a file has brought."""
    counts: list[int] = []
    original = Shards.read

    def noting(self: Shards, name: str, cut: Cut | None = None) -> Tensor:
        tensor = original(self, name, cut)
        counts.append(tensor.numel())
        return tensor

    monkeypatch.setattr(Shards, "read", noting)
    return counts


def test_each_rank_reads_its_own_numbers_and_no_other(checkpoint: Path, read: list[int]) -> None:
    counts = []
    for rank in range(4):
        read.clear()
        shard = load_shard(checkpoint, Silent(rank, 4))
        held = {id(parameter): parameter.numel() for parameter in shard.parameters()}
        assert sum(read) == sum(held.values())
        counts.append(sum(read))
    whole = sum(parameter.numel() for parameter in weights.load(checkpoint).parameters())
    # Norms, routers, shared heads of keys and values and the thin middles of low rank are everywhere.
    assert whole / 4 < max(counts) < 0.6 * whole
    assert min(counts) > 0.8 * max(counts)


def test_stages_have_every_number_once_and_together_the_models_logits(checkpoint: Path, read: list[int]) -> None:
    model, stages = weights.load(checkpoint, torch.float64), Stages((0, 1, NUM_LAYERS))
    read.clear()
    for stage in range(stages.count):
        load_shard(checkpoint, Alone(), torch.float64, stages, stage)
    assert sum(read) == sum(parameter.numel() for parameter in model.parameters())
    lengths = np.asarray([IDS.shape[1]] * len(IDS))
    every = np.arange(IDS.shape[1])[None].repeat(len(IDS), 0)
    with threads(checkpoint, stages, 1) as (backend, _), torch.no_grad():
        for along in CHAINS:
            batch = Batch({"token_ids": IDS.numpy()}, (along,) * len(IDS), np.zeros_like(lengths), lengths, every)
            got = Executor(backend, Uncounted()).run(batch)["logits"]
            wanted = model.along({"token_ids": IDS}, along).numpy()
            assert np.abs(got - wanted).max() <= EXACT * np.abs(wanted).max()


# What cannot be dealt out is refused with the value, the limit and what to do.


def config(**changes: Any) -> LMConfig:
    sizes: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 64}
    return LMConfig(17, 48, 32, 2, **{**sizes, **changes})


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (5, {}, r"5 ranks do not divide the model's 12 attention heads; use one of \[1, 2, 4, 12\]"),
        (6, {}, r"6 ranks and the model's 4 heads of keys and values .* use one of \[1, 2, 4, 12\]"),
        (2, {"activation": "poly_norm"}, r"'poly_norm' norms all neurons of a token together .* on 2 ranks; use 1"),
        (2, {"qk_norm": "all", "norm": "layer"}, r"over all heads by 'layer' are not computed on 2 ranks; use 1"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(size: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        local_config(config(**changes), Place(0, size))


@pytest.mark.parametrize("size", [1, 2, 4, 12])
def test_each_query_head_finds_its_keys_on_its_own_rank(size: int) -> None:
    whole, per_head = config(), 12 // 4
    for rank in range(size):
        local = local_config(whole, Place(rank, size))
        first, last = Place(rank, size).deal(12)
        start, stop = Place(rank, size).kv_heads(4)
        groups = local.num_attention_heads // local.num_key_value_heads
        needed = [head // per_head for head in range(first, last)]
        assert needed == [start + head // groups for head in range(last - first)]
        assert stop - start == local.num_key_value_heads


@given(count=st.integers(1, 200), size=st.integers(1, 16))
def test_every_word_and_neuron_is_dealt_out_once(count: int, size: int) -> None:
    places = [Place(rank, size) for rank in range(size)]
    for deal in (Place.deal, Place.words):
        assert [one for place in places for one in range(*deal(place, count))] == list(range(count))
    assert max(stop - start for start, stop in (place.deal(count) for place in places)) <= -(-count // size)
    assert all(stop - start <= place.most_words(count) for place in places for start, stop in [place.words(count)])


# Sources: a part read is that part of the whole.


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    directory = tmp_path_factory.mktemp("stored")
    numbers = torch.arange(24.0 * 10).view(24, 10)
    tensors = {"matrix": numbers, "across": numbers.t().contiguous(), "vector": numbers[:, 0].contiguous()}
    experts = {f"{expert}.{one}": torch.randn(6, 5) for expert in range(3) for one in ("gate", "up")}
    save_file({**tensors, **experts}, directory / "model.safetensors")
    return Shards(directory)


HEADS = ((0, 4), (8, 12), (16, 20))
EXPERTS = tuple(f"{expert}.{one}" for expert in range(3) for one in ("gate", "up"))
SOURCES: dict[str, tuple[Source, tuple[int, ...], tuple[int, ...]]] = {
    "whole": (Whole("matrix"), (24, 10), (0, 1)),
    "transposed": (Whole("across", is_transposed=True), (24, 10), (0, 1)),
    "fused": (Fused("matrix", ((8, 16),), 24), (8, 10), (0,)),
    "fused by heads": (Fused("matrix", HEADS, 24), (12, 10), (0,)),
    "fused and transposed": (Fused("across", ((8, 16),), 24, is_transposed=True), (8, 10), (0,)),
    "fused bias": (Fused("vector", HEADS, 24, is_transposed=True), (12,), (0,)),
    "experts": (Stacked(EXPERTS, 2), (3, 12, 5), (1, 2)),
}


@pytest.mark.parametrize("name", SOURCES)
@given(data=st.data())
def test_a_part_is_read_as_the_part_of_the_whole(name: str, data: st.DataObject, shards: Shards) -> None:
    found, shape, dims = SOURCES[name]
    whole = found.read(shards)
    assert found.shape(shards) == shape == tuple(whole.shape)
    dim = data.draw(st.sampled_from(dims))
    bounds = sorted(data.draw(st.lists(st.integers(0, shape[dim]), min_size=4, max_size=4)))
    runs = tuple(run for run in ((bounds[0], bounds[1]), (bounds[2], bounds[3])) if run[0] < run[1])
    part = found.read(shards, Cut(dim, runs))
    assert torch.equal(part, torch.cat([whole.narrow(dim, a, b - a) for a, b in runs or ((0, 0),)], dim))


def test_a_checkpoint_of_other_sizes_is_refused(shards: Shards) -> None:
    with pytest.raises(ArtifactError, match=r"'matrix' has 24 rows; config\.json asks for 30"):
        Fused("matrix", ((8, 16),), 30).read(shards)
    with pytest.raises(ArtifactError, match=r"'vector' has 24 rows in dimension 0 and \(\(20, 25\),\) are asked for"):
        shards.read("vector", Cut(0, ((20, 25),)))
