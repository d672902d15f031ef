"""From the files of a version to what an engine is made of. Blocks: done in a thread beside the event loop."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.artifact import LanguageSpec, Manifest, Verify, read_manifest
from models.encoders.tokenizer import EncoderTokenizer
from models.errors import ArtifactError, BackendError
from models.lm.residual import parse_form
from models.lm.tokenizer import Tokenizer
from service.backends.open import item_bytes, num_pages_within, open_backend
from service.backends.protocol import Backend
from service.backends.remote import RemoteBackend
from service.engine.encoder import EncoderEngine
from service.engine.engine import Engine, EngineLimits
from service.engine.language import LanguageEngine
from service.engine.sequence import SequenceEngine
from service.engine.sessions import Sessions
from service.engine.tensor import TensorEngine
from service.engine.warm import warm_up
from service.metrics import Metrics, ModelMetrics
from service.parallel.leader import open_ranks
from service.repository.limits import limits_of
from service.repository.sharing import backend_of, is_shared, ranking_of
from service.settings import Settings

if TYPE_CHECKING:
    from models.lm.chat import ChatTemplate


@dataclass(frozen=True, slots=True)
class Opened:
    """What an engine is made of."""

    manifest: Manifest
    backend: Backend
    limits: EngineLimits
    tokenizer: Tokenizer | None
    chat: "ChatTemplate | None"
    encoder_tokenizer: EncoderTokenizer | None = None


def open_version(
    directory: Path, settings: Settings, verify: Verify | None = None, given_up: threading.Event | None = None
) -> Opened:
    """Check a version's files, load them and run them once. Raises FathomError; then nothing stays open.

    Who waits for ranks that take long, or never come, may give them up.
    """
    manifest = read_manifest(directory, verify)
    if (manifest.name, manifest.version) != (directory.parent.name, directory.name):
        raise ArtifactError(f"{directory} holds {manifest.name!r} version {manifest.version!r}; export it again")
    _refuse_untrained(manifest, settings)
    limits, language = limits_of(manifest, settings), manifest.language
    tokenizer = Tokenizer(directory / language.tokenizer) if language else None
    chat = _chat(language, directory) if language else None
    encoder_tokenizer = EncoderTokenizer(directory / manifest.encoder.tokenizer) if manifest.encoder else None
    size = settings.kv_page_tokens
    number = item_bytes(manifest, backend_of(manifest, settings), settings.dtype)
    pages = num_pages_within(manifest, settings.max_batch_rows, settings.kv_bytes, size, number)
    backend: Backend
    if is_shared(manifest, settings):
        ranking = ranking_of(manifest, settings)
        backend = open_ranks(manifest, directory, ranking, pages, size, given_up or threading.Event())
    else:
        backend = open_backend(
            manifest,
            directory,
            settings.backend,
            settings.device,
            settings.num_threads,
            pages,
            size,
            settings.dtype,
            settings.prepack,
        )
    if settings.warm_up:
        try:
            warm_up(manifest, backend, limits.batch)
        except BackendError:
            backend.close()
            raise
    return Opened(manifest, backend, limits, tokenizer, chat, encoder_tokenizer)


def _refuse_untrained(manifest: Manifest, settings: Settings) -> None:
    """Raise ArtifactError for a model whose answers mean nothing, unless it is wanted by name to measure time."""
    layers = manifest.layers
    if layers is None or manifest.language is None:
        return
    form = parse_form(layers.residual_form)
    if form.form == "upper-bound":
        raise ArtifactError(
            f"model {manifest.name!r} has the residual form upper-bound, whose ranks never tell each other what they "
            "computed: it has no answers; measure it with fathom bench tp"
        )
    if not layers.is_trained and manifest.name not in settings.timing:
        raise ArtifactError(
            f"model {manifest.name!r} has the residual form {form.text} and weights not trained in it, so that its "
            f"answers mean nothing; train it on and export it again, or set FATHOM_TIMING={manifest.name} to measure "
            "time alone"
        )


def engine_of(opened: Opened, metrics: Metrics, sessions: Sessions) -> Engine:
    """The engine, its device thread started. To be called on the event loop."""
    manifest, backend, limits = opened.manifest, opened.backend, opened.limits
    bound = ModelMetrics(metrics, manifest.name, manifest.version)
    engine: Engine
    if opened.encoder_tokenizer is not None:
        engine = EncoderEngine(manifest, backend, limits, bound, opened.encoder_tokenizer)
    elif manifest.sequence is not None:
        engine = SequenceEngine(manifest, backend, limits, bound, sessions)
    elif opened.tokenizer is None:
        engine = TensorEngine(manifest, backend, limits, bound)
    else:
        engine = LanguageEngine(manifest, backend, limits, bound, opened.tokenizer, opened.chat)
    if isinstance(backend, RemoteBackend):
        backend.supervisor.observer = bound
        bound.watch_ranks(backend.supervisor, backend.supervisor.group.size)
    return engine


def _chat(language: LanguageSpec, directory: Path) -> "ChatTemplate | None":
    if language.chat_template is None:
        return None
    from models.lm.chat import ChatTemplate  # Jinja's start-up is left to those who need it

    return ChatTemplate((directory / language.chat_template).read_text(), language.special_tokens)
