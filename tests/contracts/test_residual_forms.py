"""The laws of `test_backend` for models that are not in the standard residual form, on eager torch and ONNX Runtime.

A row's answer is that of the plain loop over its chain, alone and among others, read at once or from pages; the stream
is everything landed; what a search shares between chains is what running each alone gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from exporters.export import export_checkpoint
from models.artifact import Format, Manifest, read_manifest
from models.chain import Chain
from models.lm import weights
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.residual import parse_form
from models.lm.rope import Rope
from service.backends.open import BackendName, open_backend
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array
from service.engine.executor import Executor
from service.engine.prefix import PrefixCache
from service.engine.shared import SharedWork, text_sample, text_stages
from service.engine.shared_runner import SharedRunner
from tests.contracts.test_backend import (
    DISTINCT,
    NUM_COLUMNS,
    PAGE_SIZE,
    Calls,
    assert_same_answer,
    difference,
    run,
    scattered_pages,
    step,
    text_batch,
)
from training.arith import tokenizer

# float32 sums in another order, as in `test_backend`.
TOLERANCE = 5e-5
FORMS = ("parallel", "ladder", "ladder(slot):0,2", "desync-4x@2")
# The one with the most in its graphs.
WRITTEN = ("ladder(slot):0,2",)
CHAINS = tuple(Chain(chain) for chain in ((0, 1, 2), (0, 2), (1, 1, 2, 2), (2, 1, 0, 2), (2,), (0, 0, 2, 1)))
PROMPTS = tuple(tuple(Random(seed).choices(range(1, 17), k=length)) for seed, length in enumerate((5, 1, 9, 3, 7, 6)))


@dataclass(frozen=True)
class Formed:
    """A model in one form: in torch, and as its artifact on one runtime."""

    model: LanguageModel
    directory: Path
    manifest: Manifest
    backend: BackendName

    def open(self, num_pages: int = 0) -> LanguageBackend:
        opened = open_backend(self.manifest, self.directory, self.backend, num_pages=num_pages, page_size=PAGE_SIZE)
        assert isinstance(opened, LanguageBackend)
        return opened

    def logits(self, token_ids: tuple[int, ...], chain: Chain) -> Array:
        with torch.inference_mode():
            return self.model.along({"token_ids": torch.tensor([token_ids])}, chain)[0].numpy()


Make = Callable[[str], tuple[LanguageModel, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model of random weights in a form, and the folder of its artifact; each made once."""
    return lru_cache(None)(lambda form: make(form, tmp_path_factory.mktemp("formed")))


def make(form: str, folder: Path) -> tuple[LanguageModel, Path]:
    config = LMConfig(len(tokenizer.CHARACTERS), 16, 24, 3, 4, 2, 64, rope=Rope(theta=200.0), residual=parse_form(form))
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4.0 if name.startswith("head") else 2.0)
    weights.save(model, folder / "formed")
    tokenizer.save(folder / "formed", config.max_position_embeddings)
    formats: tuple[Format, ...] = ("onnx", "safetensors") if form in WRITTEN else ("safetensors",)
    done = export_checkpoint(folder / "formed", folder / "repository", formats)
    assert done.refused == {}
    assert done.manifest.layers is not None
    assert done.manifest.layers.residual_form == form
    return model, done.directory


@pytest.fixture(scope="module", params=[*((form, "eager") for form in FORMS), *((form, "onnx") for form in WRITTEN)])
def formed(request: pytest.FixtureRequest, made: Make) -> Formed:
    form, backend = request.param
    model, directory = made(form)
    return Formed(model, directory, read_manifest(directory), backend)


def test_rows_along_different_chains_in_one_batch_are_plain_loops(formed: Formed) -> None:
    together = run(formed.open(), text_batch(PROMPTS, CHAINS))
    for row, (prompt, chain) in enumerate(zip(PROMPTS, CHAINS, strict=True)):
        wanted = formed.logits(prompt, chain)
        assert_same_answer(together[row, : len(prompt)], wanted, TOLERANCE)
        if chain != CHAINS[0]:
            assert difference(wanted, formed.logits(prompt, CHAINS[0])) > DISTINCT


def test_decoding_from_pages_is_recomputing(formed: Formed) -> None:
    rng, sequences = Random(0), [list(prompt) for prompt in PROMPTS]
    backend, tables = formed.open(NUM_COLUMNS * sum(map(len, CHAINS))), scattered_pages(CHAINS)
    num_cached = [0] * len(sequences)
    for _ in range(4):
        logits = step(backend, sequences, num_cached, CHAINS, tables)
        for row, (sequence, chain) in enumerate(zip(sequences, CHAINS, strict=True)):
            assert_same_answer(logits[row], formed.logits(tuple(sequence), chain)[-1], TOLERANCE)
        num_cached = [len(sequence) for sequence in sequences]
        for sequence in sequences:
            sequence.extend(rng.choices(range(17), k=rng.randint(1, 3)))


def test_stream_is_everything_landed(formed: Formed) -> None:
    streams = Executor(formed.open(), Calls()).stream(text_batch(PROMPTS, CHAINS))
    assert streams.shape[2] == formed.model.config.hidden_size
    head = formed.model.head
    for row, (prompt, chain) in enumerate(zip(PROMPTS, CHAINS, strict=True)):
        stream = torch.from_numpy(np.ascontiguousarray(streams[row, : len(prompt)]))
        with torch.inference_mode():
            logits = head.lm_head(head.norm(stream)).numpy()
        assert_same_answer(logits, formed.logits(prompt, chain), TOLERANCE)


def test_chains_that_share_prefixes_answer_as_each_alone(formed: Formed) -> None:
    prompt, target = PROMPTS[2], (3, 1, 4, 1)
    cache = PrefixCache(1 << 20)
    sample = text_sample((*prompt, *target), len(target), cache, wants_influence=True)
    answers = shared(formed, SharedWork(sample=sample, chains=CHAINS, future=None))  # type: ignore[arg-type]
    for chain, outputs in zip(CHAINS, answers, strict=True):
        wanted = formed.logits((*prompt, *target[:-1]), chain)[-len(target) :]
        assert_same_answer(outputs["logits"], wanted, TOLERANCE)
    assert sample.influence == pytest.approx(turns(formed, (*prompt, *target[:-1]), CHAINS[0]), abs=1e-5)


def test_targets_read_in_stages_answer_as_all_at_once(formed: Formed) -> None:
    prompt, target = PROMPTS[2], (3, 1, 4, 1)
    *_, last = text_stages(prompt, target, PrefixCache(1 << 20))
    answers = shared(formed, SharedWork(sample=last, chains=CHAINS, future=None))  # type: ignore[arg-type]
    for chain, outputs in zip(CHAINS, answers, strict=True):
        wanted = formed.logits((*prompt, *target[:-1]), chain)[-outputs["logits"].shape[0] :]
        assert_same_answer(outputs["logits"], wanted, TOLERANCE)


def shared(formed: Formed, work: SharedWork) -> list[dict[str, Array]]:
    """The outputs along each chain, every prefix run once."""
    running = SharedRunner(formed.open(), Calls()).run([work])
    while True:
        try:
            next(running)
        except StopIteration as done:
            return list(done.value[0].outputs)


def turns(formed: Formed, token_ids: tuple[int, ...], chain: Chain) -> list[float]:
    """1 - cos of the stream, with all that was added to it, before and after each visit; mean over tokens."""
    model = formed.model
    start = torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        hidden, *seen = model.embed(torch.tensor([token_ids]), start, start[:0])
        streams = [model.config.residual.landed(hidden)]
        for layer in chain.layers:
            hidden, *_ = model.layers[layer](hidden, *seen, model.empty_cache(1), model.empty_cache(1))
            streams.append(model.config.residual.landed(hidden))
        return [float(1 - torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(streams)]
