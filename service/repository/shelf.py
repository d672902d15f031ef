"""The versions in memory: brought, replaced by newer files of themselves, and put away. Lives on the event loop."""

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from functools import partial

from models.artifact import Verify
from models.errors import UnavailableError
from service.bound import Bound
from service.engine.engine import Engine
from service.engine.sessions import Sessions
from service.metrics import Metrics
from service.repository.catalog import Catalog
from service.repository.loader import Loader
from service.repository.model_settings import ModelSettings
from service.repository.room import Room
from service.repository.slots import Entry, Key, Slot
from service.repository.source import Source
from service.settings import Settings

_log = logging.getLogger("fathom.registry")


class Shelf:
    """Loads and frees, and keeps the catalog true. A version is replaced only by one that is ready."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        source: Source,
        catalog: Catalog,
        verify: Verify | None,
        sessions: Sessions,
    ) -> None:
        self._catalog, self._metrics = catalog, metrics
        self._room = Room(settings.models_bytes, settings.drain_s, catalog.ready, self._evict)
        self._loader = Loader(settings, metrics, source, self._room, verify, sessions)
        self._loads: dict[Key, asyncio.Task[Slot]] = {}  # whoever wants the same version waits for the same load
        self._leaving: dict[asyncio.Task[None], Slot] = {}

    async def bring(self, key: Key, settings: ModelSettings, stamp: str, is_urgent: bool = True) -> Slot:
        """Load a version, beside what is loaded of it. Goes on if the caller is cancelled. Raises FathomError."""
        task = self._loads.get(key)
        if task is None:
            # In a context of its own: what it runs is nobody's request.
            work, context = self._load(key, settings, stamp, is_urgent), contextvars.Context()
            task = self._loads[key] = asyncio.get_running_loop().create_task(work, context=context)
            task.add_done_callback(partial(self._loaded, key))
        return await asyncio.shield(task)

    def add(self, name: str, bound: Bound) -> Engine:
        """Put a model of this process beside those that are loaded."""
        slot = self._loader.bound(name, bound)
        self._catalog.enter((name, slot.engine.manifest.version), Entry("ready", slot))
        return slot.engine

    def retire(self, key: Key) -> None:
        """Let a version go once nobody needs it; no new request gets it."""
        entry = self._catalog.drop(key)
        if entry and entry.slot:
            self._let_leave(key, entry.slot, None)

    async def put_away(self, key: Key, patience_s: float) -> None:
        """Free a version, and return once it is; who still needs it after so many seconds is not waited for."""
        if loading := self._loads.get(key):
            await asyncio.wait((loading,))
        slot = self._catalog.entries.get(key, Entry("available")).slot
        self.retire(key)
        if slot:
            end = asyncio.get_running_loop().call_later(patience_s, slot.let_go)
            await asyncio.wait([task for task, leaving in self._leaving.items() if leaving is slot])
            end.cancel()

    async def close(self) -> None:
        """Free everything, and wait for nobody."""
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        for key in list(self._catalog.entries):
            self.retire(key)
        for slot in self._leaving.values():
            slot.let_go()
        await asyncio.gather(*self._leaving)

    async def _load(self, key: Key, settings: ModelSettings, stamp: str, is_urgent: bool) -> Slot:
        before = self._catalog.entries.get(key)
        if before is None or before.slot is None:
            self._catalog.enter(key, Entry("loading"))
        try:
            slot = await self._loader.load(key, settings, stamp, is_urgent)
        except (UnavailableError, asyncio.CancelledError):
            self._restore(key, before)
            raise
        except Exception as error:
            self._fail(key, error, stamp)
            raise
        old = self._catalog.entries.get(key)
        self._catalog.enter(key, Entry("ready", slot))
        self._room.look_again()
        if old and old.slot:
            self._start(self._loader.free(old.slot), old.slot)
        _log.info("model %s version %s is ready", *key)
        return slot

    def _restore(self, key: Key, before: Entry | None) -> None:
        """Nothing is wrong with a version for which there was no room or no time."""
        now = self._catalog.entries.get(key)
        if now is None or now.slot:
            return
        if before is None or before.state == "loading":
            self._catalog.drop(key)
        else:
            self._catalog.enter(key, before if before.state == "failed" else Entry("available"))

    def _fail(self, key: Key, error: Exception, stamp: str) -> None:
        self._metrics.load_failures.labels(*key).inc()
        now = self._catalog.entries.get(key)
        slot = now.slot if now else None
        self._catalog.enter(key, Entry("ready" if slot else "failed", slot, str(error) or repr(error), stamp))

    def _loaded(self, key: Key, task: "asyncio.Task[Slot]") -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # whoever asked may have left, and then nobody else looks at it

    async def _evict(self, key: Key, slot: Slot) -> None:
        entry = self._catalog.entries.get(key)
        if entry is None or entry.slot is not slot:
            return
        self._metrics.evictions.labels(*key).inc()
        _log.info("model %s version %s makes room", *key)
        await asyncio.wait((self._let_leave(key, slot, Entry("available")),))

    def _let_leave(self, key: Key, slot: Slot, end: Entry | None) -> "asyncio.Task[None]":
        going = Entry("unloading")
        self._catalog.enter(key, going)

        async def leave() -> None:
            await self._loader.free(slot)
            if self._catalog.entries.get(key) is going:
                self._catalog.drop(key)
                if end:
                    self._catalog.enter(key, end)

        return self._start(leave(), slot)

    def _start(self, leaving: Coroutine[None, None, None], slot: Slot) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(leaving)
        self._leaving[task] = slot
        task.add_done_callback(self._leaving.pop)
        return task
