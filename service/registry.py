"""The models of a repository: which are loaded, which version answers, and what state each is in."""

import asyncio
import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from models.artifact import LanguageSpec, Manifest, find_version, list_versions, read_manifest, version_order
from models.encoders.tokenizer import EncoderTokenizer
from models.errors import ArtifactError, BackendError, ChainError, FathomError, UnavailableError, UnknownModelError
from models.lm.tokenizer import Tokenizer
from service.backends.open import item_bytes, num_pages_within, open_backend
from service.backends.protocol import Backend
from service.bound import Bound
from service.engine.degrade import Ladder, read_ladder
from service.engine.encoder import EncoderEngine
from service.engine.engine import Engine, EngineLimits
from service.engine.language import LanguageEngine
from service.engine.queue import Limits, QueueLimits
from service.engine.tensor import TensorEngine
from service.engine.warm import warm_up
from service.metrics import Metrics, ModelMetrics
from service.settings import Settings
from service.trim import give_back_memory

if TYPE_CHECKING:
    from models.lm.chat import ChatTemplate

_log = logging.getLogger("fathom.registry")
State: TypeAlias = Literal["available", "loading", "ready", "unloading", "failed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one model: its engine when ready, the reason when failed."""

    state: State
    engine: Engine | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Opened:
    """What an engine is made of."""

    manifest: Manifest
    backend: Backend
    limits: EngineLimits
    tokenizer: Tokenizer | None
    chat: "ChatTemplate | None"
    encoder_tokenizer: EncoderTokenizer | None = None


class Registry:
    """Loads, finds and unloads models. Lives on the event loop; loading happens in threads beside it."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._entries: dict[tuple[str, str], Entry] = {}
        self._found: dict[tuple[str, str | None], Engine] = {}  # what `get` answered since the last change
        # Of several who load or unload a version at once, each waits for the one before.
        self._turns: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def is_ready(self) -> bool:
        """At least one model serves and none is on its way."""
        states = {entry.state for entry in self._entries.values()}
        return "ready" in states and "loading" not in states

    def states(self) -> dict[tuple[str, str], Entry]:
        """Every version in the repository or in memory, by (model, version)."""
        on_disk = ((name, version) for name, found in list_versions(self.repository).items() for version in found)
        return {**{key: Entry("available") for key in on_disk}, **self._entries}

    @property
    def repository(self) -> Path:
        return self._settings.repository

    def get(self, name: str, version: str | None = None) -> Engine:
        """The engine of a version, or of the latest ready one. Raises UnknownModelError or UnavailableError."""
        engine = self._found.get((name, version))
        if engine is None:
            engine = self._found[name, version] = self._find(name, version)
        return engine

    def _find(self, name: str, version: str | None) -> Engine:
        versions = {found: entry for (model, found), entry in self._entries.items() if model == name}
        ready = [found for found, entry in versions.items() if entry.engine]
        latest = max(ready or versions, key=version_order, default=None)
        entry = versions.get(version or latest or "")
        if entry is None:
            self._refuse_unknown(name, version)
            raise UnavailableError(f"model {name!r} is not loaded; POST /models/{name}/load")
        if entry.engine is None:
            raise UnavailableError(f"model {name!r} is {entry.state}{': ' if entry.reason else ''}{entry.reason}")
        return entry.engine

    async def load_all(self) -> None:
        """Load the latest version of every model; one that fails does not stop the others."""
        names = list(list_versions(self.repository))
        if strangers := sorted(self._settings.degrade.keys() - set(names)):
            _log.warning("FATHOM_DEGRADE names %s; there are %s", strangers, names)
        for name in names:
            self._enter(self._key(name, None), Entry("loading"))
        for name in names:
            try:
                await self.load(name)
            except Exception as error:
                _log.error("model %s did not load: %s", name, error, exc_info=not isinstance(error, FathomError))

    async def load(self, name: str, version: str | None = None) -> Engine:
        """Load a version, the latest by default, and return its engine. Raises FathomError, kept as the reason."""
        key = self._key(name, version)
        async with self._turns[key]:
            entry = self._entries.get(key)
            return entry.engine if entry and entry.engine else await self._load(key)

    async def _load(self, key: tuple[str, str]) -> Engine:
        self._enter(key, Entry("loading"))
        started = time.perf_counter()
        try:
            opened = await asyncio.to_thread(self._open, self.repository / key[0] / key[1])
            engine = self._engine(opened)
        except Exception as error:
            self._enter(key, Entry("failed", reason=str(error)))
            raise
        engine.metrics.observe_load(time.perf_counter() - started)
        self._enter(key, Entry("ready", engine))
        _log.info("model %s version %s is ready", *key)
        return engine

    def add(self, name: str, bound: Bound) -> Engine:
        """Serve a model of this process until it is unloaded; there are no files to load it from again."""
        manifest = bound.manifest(name)
        limits = _limits(manifest, self._settings)
        if not bound.is_module:  # a function may wait for something, or want no event loop around it
            limits = replace(limits, batch=replace(limits.batch, max_inline_s=0.0))
        engine = self._engine(_Opened(manifest, bound.open(name), limits, None, None))
        self._enter((name, manifest.version), Entry("ready", engine))
        return engine

    async def unload(self, name: str, version: str | None = None) -> None:
        """Let a model answer what it accepted, then free it. Raises UnknownModelError if it is not loaded."""
        keys = [key for key, entry in self._entries.items() if key[0] == name and version in (None, key[1])]
        if not keys:
            self._refuse_unknown(name, version)
        for key in keys:
            async with self._turns[key]:
                await self._unload(key)

    async def _unload(self, key: tuple[str, str]) -> None:
        engine = self._entries.pop(key, Entry("available")).engine
        if engine:
            self._enter(key, Entry("unloading"))
            await engine.close()
            del engine, self._entries[key]
            await asyncio.to_thread(give_back_memory)

    async def close(self) -> None:
        """Unload everything."""
        for name in {name for name, _ in self._entries}:
            await self.unload(name)

    def _enter(self, key: tuple[str, str], entry: Entry) -> None:
        self._entries[key] = entry
        self._found.clear()

    def _key(self, name: str, version: str | None) -> tuple[str, str]:
        return name, find_version(self.repository, name, version).name

    def _refuse_unknown(self, name: str, version: str | None) -> None:
        known = self.states()
        if not any(name == model and version in (None, found) for model, found in known):
            raise UnknownModelError(
                f"no model {name!r}{f' version {version!r}' if version else ''}; "
                f"there are {[f'{model}/{found}' for model, found in known]}"
            )

    def _open(self, directory: Path) -> _Opened:
        """Everything about a model that takes time: its own thread waits for it, not the event loop."""
        settings, manifest = self._settings, read_manifest(directory)
        if (manifest.name, manifest.version) != (directory.parent.name, directory.name):
            raise ArtifactError(f"{directory} holds {manifest.name!r} version {manifest.version!r}; export it again")
        limits, language = _limits(manifest, settings), manifest.language
        tokenizer = Tokenizer(directory / language.tokenizer) if language else None
        chat = _chat(language, directory) if language else None
        encoder_tokenizer = EncoderTokenizer(directory / manifest.encoder.tokenizer) if manifest.encoder else None
        size = settings.kv_page_tokens
        number = item_bytes(manifest, settings.backend, settings.dtype)
        pages = num_pages_within(manifest, settings.max_batch_rows, settings.kv_bytes, size, number)
        backend = open_backend(
            manifest, directory, settings.backend, settings.device, settings.num_threads, pages, size, settings.dtype
        )
        if settings.warm_up:
            try:
                warm_up(manifest, backend, limits.batch)
            except BackendError:
                backend.close()
                raise
        return _Opened(manifest, backend, limits, tokenizer, chat, encoder_tokenizer)

    def _engine(self, opened: _Opened) -> Engine:
        manifest, backend, limits = opened.manifest, opened.backend, opened.limits
        metrics = ModelMetrics(self._metrics, manifest.name, manifest.version)
        if opened.encoder_tokenizer is not None:
            return EncoderEngine(manifest, backend, limits, metrics, opened.encoder_tokenizer)
        if opened.tokenizer is None:
            return TensorEngine(manifest, backend, limits, metrics)
        return LanguageEngine(manifest, backend, limits, metrics, opened.tokenizer, opened.chat)


def _limits(manifest: Manifest, settings: Settings) -> EngineLimits:
    return EngineLimits(
        Limits(_rows_at_once(manifest, settings), settings.max_batch_tokens, settings.max_prefill_tokens),
        QueueLimits(
            settings.max_queue_requests, settings.max_queue_rows, settings.max_queue_tokens, settings.max_client_rows
        ),
        _longest_chain(manifest, settings),
        settings.search_bytes,
        settings.verifier_url,
        settings.verifier_timeout_s,
        settings.verifier_max_retries,
        _ladder(manifest, settings),
        settings.response_cache_bytes,
    )


def _chat(language: LanguageSpec, directory: Path) -> "ChatTemplate | None":
    if language.chat_template is None:
        return None
    from models.lm.chat import ChatTemplate  # Jinja's start-up is left to those who need it

    return ChatTemplate((directory / language.chat_template).read_text(), language.special_tokens)


def _rows_at_once(manifest: Manifest, settings: Settings) -> int:
    """Rows of one pass; an adopted graph may have been exported for a fixed number."""
    fixed = {spec.shape[0] for spec in (*manifest.inputs, *manifest.outputs)} - {-1}
    return min(fixed, default=settings.max_batch_rows)


def _ladder(manifest: Manifest, settings: Settings) -> Ladder | None:
    """The cheaper chains that are declared for a model. Raises ChainError if it cannot run them."""
    declared = settings.degrade.get(manifest.name)
    if not declared:
        return None
    if not manifest.num_layers:
        raise ChainError(f"model {manifest.name!r} is served whole; leave it out of FATHOM_DEGRADE")
    chains = read_ladder(declared, manifest.num_layers, _longest_chain(manifest, settings))
    return Ladder(chains, settings.degrade_wait_s, settings.degrade_fraction)


def _longest_chain(manifest: Manifest, settings: Settings) -> int:
    return int(manifest.num_layers * settings.max_chain_factor)
