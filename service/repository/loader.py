"""Loads one version: fetched, given room, opened in a thread, warmed up, and rehearsed; and frees it again."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

from models.artifact import MANIFEST, Verify, parse_manifest
from models.errors import ArtifactError, UnavailableError
from service.backends.open import files_of
from service.bound import Bound
from service.engine.engine import Engine
from service.engine.sessions import Sessions
from service.metrics import Metrics
from service.repository.limits import limits_of
from service.repository.model_settings import ModelSettings
from service.repository.opening import Opened, engine_of, open_version
from service.repository.room import Room
from service.repository.sharing import backend_of
from service.repository.slots import Key, Slot
from service.repository.source import Source, folder_stamp
from service.settings import Settings
from service.trim import give_back_memory


class FullError(UnavailableError):
    """There is no room for a model that nobody asked for yet."""


class Loader:
    """Makes slots of versions. Raises FathomError; then nothing stays open and no room is taken."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        source: Source,
        room: Room,
        verify: Verify | None,
        sessions: Sessions,
    ) -> None:
        self._settings, self._metrics, self._source, self._room = settings, metrics, source, room
        self._verify, self._sessions = verify, sessions

    async def load(self, key: Key, settings: ModelSettings, stamp: str, is_urgent: bool) -> Slot:
        """One version, ready to answer. Without urgency nobody leaves to make room for it: then FullError."""
        started, own = time.perf_counter(), settings.over(self._settings)
        num_bytes = await asyncio.to_thread(self._num_bytes, key, own)
        if not (is_urgent or self._room.has(num_bytes)):
            raise FullError(f"no room for model {key[0]!r} yet; it loads with its first request")
        await self._room.take(key, num_bytes)
        lease = None
        try:
            lease = await asyncio.to_thread(self._source.fetch, *key)
            engine = await self._engine(lease.directory, settings, own)
        except BaseException:
            if lease:
                lease.let_go()
            self._room.give(num_bytes)
            raise
        engine.metrics.observe_load(time.perf_counter() - started)
        return Slot(engine, num_bytes, stamp, lease)

    def bound(self, name: str, bound: Bound) -> Slot:
        """A model of this process."""
        manifest = bound.manifest(name)
        limits = limits_of(manifest, self._settings)
        if not bound.is_module:  # a function may wait for something, or want no event loop around it
            limits = replace(limits, batch=replace(limits.batch, max_inline_s=0.0))
        opened = Opened(manifest, bound.open(name), limits, None, None)
        return Slot(engine_of(opened, self._metrics, self._sessions), 0, "", is_bound=True)

    async def free(self, slot: Slot) -> None:
        """Once nobody needs it, let a version answer what is queued and close it."""
        await slot.wait_until_idle()
        await slot.engine.close()
        del slot.engine  # whoever remembers the slot shall not keep the weights
        if slot.lease:
            slot.lease.let_go()
        self._room.give(slot.num_bytes)
        await asyncio.to_thread(give_back_memory)

    async def _engine(self, directory: Path, settings: ModelSettings, own: Settings) -> Engine:
        given_up = threading.Event()
        try:
            opened = await asyncio.to_thread(self._open, directory, own, given_up)
        except asyncio.CancelledError:
            given_up.set()
            raise
        engine = engine_of(opened, self._metrics, self._sessions)
        if settings.warm_up:
            from service.repository.rehearsal import rehearse  # brings the web framework along

            try:
                await rehearse(engine, settings.warm_up)
            except BaseException:
                await engine.close()
                raise
        return engine

    def _num_bytes(self, key: Key, settings: Settings) -> int:
        """Size of the files that a version is served from."""
        place = "/".join((*key, MANIFEST))
        try:
            content = self._source.manifest_of(*key)
        except OSError as error:
            raise ArtifactError(f"{place} cannot be read: {error.strerror or error}; export the model again") from error
        manifest = parse_manifest(content, place)
        return sum(manifest.files[name].size_bytes for name in files_of(manifest, backend_of(manifest, settings)))

    def _open(self, directory: Path, settings: Settings, given_up: threading.Event) -> Opened:
        before = folder_stamp(directory)
        opened = open_version(directory, settings, self._verify, given_up)
        if folder_stamp(directory) != before:
            opened.backend.close()
            raise ArtifactError(
                f"{directory} changed while it was loaded; write a version beside the others and rename it into place"
            )
        return opened
