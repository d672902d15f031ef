"""Fake models and the engines over them: everything but the arithmetic is real."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from models.artifact import LanguageSpec, LayersSpec, Manifest, TensorSpec
from models.lm.tokenizer import Tokenizer
from service.backends.open import open_backend
from service.backends.protocol import Backend
from service.engine.engine import EngineLimits
from service.engine.language import LanguageEngine
from service.engine.queue import Limits, QueueLimits
from service.engine.tensor import TensorEngine
from service.metrics import Metrics, ModelMetrics
from training.arith import tokenizer

NUM_LAYERS = 4
LIMITS = EngineLimits(
    batch=Limits(max_rows=8, max_tokens=256),
    queue=QueueLimits(max_requests=64, max_rows=64, max_tokens=2048),
    max_chain_length=8,
    search_bytes=1 << 20,
)
OpenLanguage: TypeAlias = Callable[..., AbstractAsyncContextManager[LanguageEngine]]
OpenTensor: TypeAlias = Callable[..., AbstractAsyncContextManager[TensorEngine]]


@pytest.fixture(scope="session")
def language_manifest() -> Manifest:
    """A language model over the arithmetic alphabet; token 0 ends a sequence."""
    return Manifest(
        name="words",
        version="1",
        kind="causal-lm",
        inputs=(TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, 18)),),
        layers=LayersSpec(count=NUM_LAYERS, residual_form="standard", cost=(1,) * NUM_LAYERS),
        language=LanguageSpec(
            vocab_size=18, max_length=48, num_kv_heads=1, head_size=2, eos_token_ids=(0,), tokenizer="tokenizer.json"
        ),
        forms={},
        files={},
    )


@pytest.fixture(scope="session")
def tensor_manifest() -> Manifest:
    """A classifier of three features and five classes."""
    return Manifest(
        name="numbers",
        version="1",
        kind="tensor",
        inputs=(TensorSpec(name="features", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 5)),),
        layers=LayersSpec(count=NUM_LAYERS, residual_form="standard", cost=(1,) * NUM_LAYERS),
        forms={},
        files={},
    )


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of the arithmetic model."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory, max_length=48)
    return Tokenizer(directory / "tokenizer.json")


@pytest.fixture
def open_language(language_manifest: Manifest, arithmetic: Tokenizer) -> OpenLanguage:
    """Opens a language engine, over the fake backend if no other is given, and closes it."""

    @asynccontextmanager
    async def opened(
        backend: Backend | None = None,
        manifest: Manifest = language_manifest,
        limits: EngineLimits = LIMITS,
        metrics: Metrics | None = None,
    ) -> AsyncIterator[LanguageEngine]:
        backend = backend or open_backend(manifest, Path(), "fake", num_pages=120)
        labelled = ModelMetrics(metrics or Metrics(), manifest.name, manifest.version)
        engine = LanguageEngine(manifest, backend, limits, labelled, arithmetic)
        try:
            yield engine
        finally:
            await engine.close()

    return opened


@pytest.fixture
def open_tensor(tensor_manifest: Manifest) -> OpenTensor:
    """Opens a tensor engine, over the fake backend if no other is given, and closes it."""

    @asynccontextmanager
    async def opened(
        backend: Backend | None = None, manifest: Manifest = tensor_manifest, limits: EngineLimits = LIMITS
    ) -> AsyncIterator[TensorEngine]:
        backend = backend or open_backend(manifest, Path(), "fake")
        engine = TensorEngine(manifest, backend, limits, ModelMetrics(Metrics(), manifest.name, manifest.version))
        try:
            yield engine
        finally:
            await engine.close()

    return opened
