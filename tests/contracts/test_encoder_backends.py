"""The laws of every backend for text encoders: any chain is a plain loop, and alone equals in a batch."""

import asyncio
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from exporters.export import export_checkpoint
from models.artifact import read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.encoders.model import EncoderModel
from models.encoders.tokenizer import EncoderTokenizer
from service.backends.open import BackendName, open_backend
from service.backends.protocol import Array
from service.engine.encoder import Encoded, EncoderEngine
from service.engine.engine import EngineLimits
from service.engine.prefix import PrefixCache
from service.engine.queue import Limits, QueueLimits
from service.metrics import Metrics, ModelMetrics
from tests.contracts.encoders import ENCODERS, MASK, make, make_sentence

TOLERANCE = 5e-5
# Outputs of the chains differ by more than this, so that a mistaken one is never within the tolerance.
DISTINCT = 5e-3
CHAINS = tuple(map(Chain, ((0, 1, 2), (0, 2), (1,), (0, 1, 1, 1, 2), (2, 0, 1), (2, 1, 0), (0, 1, 2, 0, 1, 2))))
RANDOM = Random(0)
TEXTS = tuple(tuple(RANDOM.choices(range(5, 99), k=length)) for length in (5, 1, 19, 3, 9, 40, 12))
LIMITS = EngineLimits(Limits(8, 256), QueueLimits(64, 64, 4096), max_chain_length=12, search_bytes=1 << 20)
BACKENDS: tuple[BackendName, ...] = ("onnx", "torchscript", "eager")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence embedding by BERT, and ModernBERT with an output for each token: all that backends tell apart."""
    checkpoints, repository = tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("repository")
    make_sentence(checkpoints / "sentences", max_seq_length=48)
    make(next(one for one in ENCODERS if str(one) == "modernbert-tokens"), checkpoints / "tokens")
    for name in ("sentences", "tokens"):
        exported = export_checkpoint(checkpoints / name, repository)
        assert exported.refused == {}
        assert list(exported.manifest.forms) == ["onnx", "torchscript", "safetensors"]
    return repository


class Opened:
    """One model on one runtime, and the plain loop."""

    def __init__(self, directory: Path, backend: BackendName) -> None:
        self.manifest = read_manifest(directory)
        self.directory, self.name = directory, backend
        self.metrics = Metrics()
        model = load_checkpoint(directory / "safetensors")
        assert isinstance(model, EncoderModel)
        self.model = model

    def encode(self, *requests: tuple[Sequence[Any], Sequence[Chain]]) -> list[list[Encoded]]:
        """Answers of requests that wait together."""

        async def run() -> list[list[Encoded]]:
            assert self.manifest.encoder is not None
            tokenizer = EncoderTokenizer(self.directory / self.manifest.encoder.tokenizer)
            backend = open_backend(self.manifest, self.directory, self.name)
            engine = EncoderEngine(self.manifest, backend, LIMITS, ModelMetrics(self.metrics, "m", "1"), tokenizer)
            try:
                return await asyncio.gather(
                    *(engine.encode(texts, [list(chain.layers) for chain in chains]) for texts, chains in requests)
                )
            finally:
                await engine.close()

        return asyncio.run(run())

    @torch.inference_mode()
    def plain(self, ids: Sequence[int], chain: Chain) -> Array:
        """A loop over layers in torch, one text at a time; probabilities of what has them."""
        given = {"token_ids": torch.tensor([ids]), "lengths": torch.tensor([len(ids)])}
        outputs = self.model.along(given, chain)[0]
        return (outputs if self.manifest.encoder.task == "embed" else outputs.softmax(-1)).numpy()  # type: ignore[union-attr]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    name: BackendName = request.param
    return name


@pytest.fixture(scope="module", params=["sentences", "tokens"])
def opened(request: pytest.FixtureRequest, repository: Path, backend: BackendName) -> Opened:
    return Opened(repository / request.param / "1", backend)


def difference(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def test_chains_of_these_tests_are_told_apart(repository: Path) -> None:
    for name in ("sentences", "tokens"):
        one = Opened(repository / name / "1", "eager")
        answers = [one.plain(TEXTS[2], chain) for chain in CHAINS]
        assert min(difference(a, b) for a, b in combinations(answers, 2)) > DISTINCT


def test_any_chain_is_a_plain_loop_alone_and_in_a_batch(opened: Opened) -> None:
    texts = [list(ids) for ids in TEXTS]
    (together,) = opened.encode((texts, CHAINS))
    alone = opened.encode(*(([ids], [chain]) for ids, chain in zip(texts, CHAINS, strict=True)))
    for ids, chain, one, (same,) in zip(texts, CHAINS, together, alone, strict=True):
        wanted = opened.plain(ids, chain)
        assert difference(one.values, wanted) <= TOLERANCE
        assert difference(same.values, wanted) <= TOLERANCE
        assert (one.chain, one.layers_executed, one.layers_full) == (chain, len(chain), 3)
        assert one.layer_evaluations == len(chain) * len(ids)


def test_layers_reported_are_the_layers_that_ran(opened: Opened) -> None:
    before = _counted(opened.metrics, "fathom_layer_evaluations_total")
    (done,) = opened.encode(([list(TEXTS[0]), list(TEXTS[2])], CHAINS[1:3]))
    ran = _counted(opened.metrics, "fathom_layer_evaluations_total") - before
    assert ran == sum(one.layer_evaluations for one in done)


def _counted(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name, {"model": "m", "version": "1"}) or 0.0


def test_search_gets_what_serving_gives(opened: Opened) -> None:
    """Chains that share prefixes, and texts of other lengths beside them."""

    async def run() -> tuple[Any, list[Array]]:
        assert opened.manifest.encoder is not None
        tokenizer = EncoderTokenizer(opened.directory / opened.manifest.encoder.tokenizer)
        backend = open_backend(opened.manifest, opened.directory, opened.name)
        engine = EncoderEngine(opened.manifest, backend, LIMITS, ModelMetrics(Metrics(), "m", "1"), tokenizer)
        tokens = engine.tokens(list(TEXTS[0]))
        shared = await engine.explore(engine.sample(tokens, PrefixCache(1 << 20)), CHAINS)
        alone = [await engine.outputs(tokens, chain) for chain in CHAINS]
        await engine.close()
        return shared, alone

    shared, alone = asyncio.run(run())
    for outputs, one in zip(shared.outputs, alone, strict=True):
        (found,) = outputs.values()
        assert difference(found[: len(one)], one) <= TOLERANCE
    assert shared.layer_evaluations < sum(map(len, CHAINS)) * len(TEXTS[0])


def test_local_attention_was_verified_beyond_its_reach(repository: Path) -> None:
    manifest = read_manifest(repository / "tokens" / "1")
    assert max(measured.length for measured in manifest.forms["onnx"].measured) > 6 // 2 + 1
    assert manifest.encoder is not None
    assert (manifest.encoder.task, manifest.encoder.labels) == ("tokens", ("calm", "glad", "sad", "wild"))
    assert manifest.encoder.vocab_size > MASK


def test_cost_of_a_visit_is_that_of_one_token(repository: Path) -> None:
    layers = read_manifest(repository / "sentences" / "1").layers
    assert layers is not None
    assert layers.cost == (4 * 32 * 32 + 2 * 32 * 48,) * 3
