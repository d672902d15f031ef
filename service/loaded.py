"""A model in this process without HTTP: `load`. The same engine, so that threads who ask at once share batches."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import orjson

from models.artifact import MANIFEST, Manifest
from models.errors import InputError, UnavailableError
from service.api import predict
from service.api.schemas import PredictRequest
from service.api.sessions import refuse_stateless
from service.backends.open import refuse_both_runtimes
from service.bound import Bound
from service.client import reading
from service.client.asking import Asking, Inputs, arrays_of, predict_body
from service.client.results import Prediction, Usage
from service.cola.database import Database
from service.cola.memory import Memory
from service.ending import close_at_end, forget
from service.engine.engine import Engine
from service.engine.sequence import SequenceEngine
from service.engine.tensor import Inference, TensorEngine
from service.engine.terms import ask, current_terms, noted, set_terms
from service.local import validated
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings, read_settings

_T = TypeVar("_T")


class Loaded:
    """A model that answers callers of any thread. Close it, or leave its `with` block: what it accepted is answered."""

    def __init__(self, settings: Settings, name: str, version: str | None, bound: Bound | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fathom-model", daemon=True)
        self._thread.start()
        self._registry = Registry(settings, Metrics())
        self._database = Database(settings.memory, settings.folder)
        self._memory = Memory(self._database)
        close_at_end(self, self.close)
        try:
            self._engine = self._wait(self._open(name, version, bound))
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What it takes and gives, and its layers."""
        return self._engine.manifest

    def predict(self, inputs: Inputs, **asked: Unpack[Asking]) -> Prediction:
        """Run every input along its chain, as `Client.predict` does: texts, token ids, rows, or arrays [B, ...].

        Raises one of `models.errors`: InputError, ChainError, LengthError, OverloadError, DeadlineError and others.
        """
        return self._wait(self._predict(inputs, asked))

    def close(self) -> None:
        """Answer what was accepted, then free the model. A second call does nothing."""
        forget(self)
        if self._loop.is_closed():
            return
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    async def _open(self, name: str, version: str | None, bound: Bound | None) -> Engine:
        return await self._registry.load(name, version) if bound is None else self._registry.add(name, bound)

    async def _close(self) -> None:
        await self._registry.close()
        await self._database.close()
        await self._loop.shutdown_default_executor()

    async def _predict(self, inputs: Inputs, asked: Asking) -> Prediction:
        engine = self._engine
        set_terms(current_terms())  # what the answer has to say is noted there
        ask(asked.get("timeout"), asked.get("priority"))
        body = _body(engine.manifest.name, inputs, asked)
        if body.session is not None:
            refuse_stateless(engine)
        await predict.recall(body, engine, self._memory)
        is_array = arrays_of(inputs) is not None and not isinstance(engine, SequenceEngine)
        if is_array and isinstance(engine, TensorEngine):
            return _told(engine, await engine.infer(body.inputs, body.chain))
        return reading.prediction(orjson.loads(await predict.answer(body, engine)))

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop.is_closed():
            work.close()
            raise UnavailableError(f"model {self.manifest.name!r} was closed; load it again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # whoever is interrupted wants no answer
            raise


def load(
    model: str | Path | Bound,
    version: str | None = None,
    *,
    repository: Path | str | None = None,
    **settings: Any,
) -> Loaded:
    """Load a model into this process: its folder, the folder of one version, its name in a repository, or a bound one.

    `settings` are those of the environment by their names without the prefix, such as `backend="onnx"`.
    Raises UnknownModelError, ArtifactError, BackendError or SettingsError.
    """
    refuse_both_runtimes()
    if isinstance(model, Bound):
        return Loaded(read_settings(None, repository=repository, **settings), model.name, None, model)
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        folder, version = folder.resolve().parent, folder.resolve().name
    is_folder = any(folder.glob(f"[!.]*/{MANIFEST}"))
    home, name = (folder.resolve().parent, folder.resolve().name) if is_folder else (repository, str(model))
    return Loaded(read_settings(None, repository=home, **settings), name, version)


def _body(name: str, inputs: Inputs, asked: Asking) -> PredictRequest:
    """What POST /predict would have read. Raises InputError."""
    arrays = arrays_of(inputs)
    said = predict_body(name, () if arrays is not None else inputs, asked)
    body: dict[str, Any] = orjson.loads(orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY))
    if arrays is not None:
        body["inputs"] = arrays
    elif not body["inputs"]:
        raise InputError("no inputs came; send at least one")
    request: PredictRequest = validated(PredictRequest, body)
    return request


def _told(engine: Engine, done: Inference) -> Prediction:
    chains = tuple(chain.layers for chain in done.chains)
    executed = 0 if done.timing.is_cached else sum(map(len, chains))
    return Prediction(
        model=engine.manifest.name,
        version=engine.manifest.version,
        request_id="",
        usage=Usage(executed),
        chains=chains,
        layers_executed=executed,
        layers_full=engine.num_layers * len(chains),
        arrays=done.outputs,
        **noted(),
    )
