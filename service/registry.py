"""The models of a repository: which are loaded, which version answers, and what state each is in."""

import asyncio
import logging
import math
import time
from collections import defaultdict

from models.errors import ArtifactError, DeadlineError, FathomError, UnavailableError
from models.signature import settings_verifier, verifier
from service.bound import Bound
from service.engine.engine import Engine
from service.engine.sessions import SessionLimits, Sessions
from service.engine.terms import current_terms
from service.metrics import Metrics
from service.repository.catalog import Catalog
from service.repository.model_settings import ModelSettings
from service.repository.reload import Reload
from service.repository.shelf import Shelf
from service.repository.slots import Entry, Key, Slot, hold
from service.repository.source import open_source
from service.settings import Settings

_log = logging.getLogger("fathom.registry")


class Registry:
    """Loads, finds and unloads models. Lives on the event loop; loading happens in threads beside it.

    Raises ArtifactError where the repository or its key cannot be used at all.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        verify = verifier(settings.repository_key) if settings.repository_key else None
        self._source = open_source(settings, verify)
        self._catalog = Catalog(self._source.versions, is_lazy=settings.models_bytes > 0)
        self.sessions = Sessions(_session_limits(settings))
        self._shelf = Shelf(settings, metrics, self._source, self._catalog, verify, self.sessions)
        verify_settings = settings_verifier(settings.repository_key) if settings.repository_key else None
        self._reload = Reload(self._catalog, self._source, self._shelf, verify_settings)
        # Of several who load, unload or reload a model at once, each waits for the one before.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._is_started = False

    @property
    def is_ready(self) -> bool:
        """The first look at the repository is over, and at least one model serves or will with its first request.

        While ranks are started anew nothing is: other servers have all of theirs.
        """
        troubles = [slot.engine.trouble for _, slot in self._catalog.ready()]
        if any(trouble and not trouble.is_final for trouble in troubles):
            return False
        return self._is_started and any(map(self._catalog.may_answer, self.states()))

    def states(self) -> dict[Key, Entry]:
        """Every version in the repository or in memory, by (model, version)."""
        return self._catalog.states()

    def settings_of(self, name: str) -> ModelSettings:
        """The settings in force for a model."""
        return self._catalog.settings_of(name)

    async def get(self, name: str, version: str | None = None, takes_turn: bool = True) -> Engine:
        """The engine of a version or label, or else of the one whose turn it is, the newest that serves.

        It stays loaded until the request is over. Where models take turns in memory this may wait for a load. What only
        looks takes no turn of a split. Raises UnknownModelError, UnavailableError or DeadlineError.
        """
        slot = self._catalog.find(name, version) or await self._find(name, version, takes_turn)
        hold(slot)
        return slot.engine

    def check(self, name: str, version: str | None = None, takes_turn: bool = False) -> Key:
        """The version that would answer. Raises UnknownModelError or UnavailableError."""
        key = self._catalog.key_of(name, version, takes_turn)
        slot = self._catalog.entries.get(key, Entry("available")).slot
        if trouble := slot and slot.engine.trouble:
            raise trouble
        if not self._catalog.may_answer(key):
            entry = self.states()[key]
            raise UnavailableError(f"model {key[0]!r} is {entry.state}{': ' if entry.reason else ''}{entry.reason}")
        return key

    async def _find(self, name: str, version: str | None, takes_turn: bool) -> Slot:
        key = self.check(name, version, takes_turn)
        while (slot := self._catalog.entries.get(key, Entry("available")).slot) is None:
            await self._wait_for(key)
            self.check(*key)
        self._catalog.settle(name, version, slot)
        return slot

    async def _wait_for(self, key: Key) -> None:
        """Load a version for the request that is being answered. What is wrong with it is then its reason."""
        terms, settings = current_terms(), self.settings_of(key[0])
        left_s = None if terms.timeout_s == math.inf else terms.deadline - time.perf_counter()
        try:
            async with asyncio.timeout(left_s):
                await self._shelf.bring(key, settings, await self._reload.stamp(key, settings))
        except TimeoutError as error:
            raise DeadlineError(
                f"model {key[0]!r} was still loading when {terms.timeout_s:g} s were over; allow more time"
            ) from error
        except UnavailableError:
            raise
        except FathomError as error:
            _log.error("model %s version %s did not load: %s", *key, error)

    async def load_all(self) -> None:
        """Load what the repository says; a model that fails does not stop the others."""
        await self._try_refresh()
        found = self._source.versions()
        if strangers := sorted(self._settings.degrade.keys() - found.keys()):
            _log.warning("FATHOM_DEGRADE names %s; there are %s", strangers, list(found))
        if not self._settings.models_bytes:
            for name, versions in found.items():
                self._catalog.entries.setdefault((name, versions[-1]), Entry("loading"))
        for name in found:
            await self._reload_one(name)
        self._is_started = True
        await self._prune()

    async def reload(self, is_retry: bool = False) -> None:
        """Look at the repository again and follow its changes; with `is_retry` what failed is tried again.

        Raises ArtifactError if it cannot be read; everything then stays as it is. What fails is in `states`.
        """
        failed = True
        try:
            await asyncio.to_thread(self._source.refresh)
            names = {*self._source.versions(), *(name for name, _ in self._catalog.entries)}
            failed = any([await self._reload_one(name, is_retry) for name in sorted(names)])
            await self._prune()
        finally:
            self._metrics.reloads.labels("failed" if failed else "done").inc()

    async def follow(self) -> None:
        """Reload every `reload_s`, if that is wanted, until cancelled."""
        told = ""
        while self._settings.reload_s:
            await asyncio.sleep(self._settings.reload_s)
            try:
                await self.reload()
                told = ""
            except Exception as error:
                if told != str(error):
                    _log.error("no reload: %s", error, exc_info=not isinstance(error, FathomError))
                told = str(error)

    async def load(self, name: str, version: str | None = None) -> Engine:
        """Load a version or label, or else what the settings want, and return its engine. Raises FathomError."""
        await self._try_refresh()
        name, version = self._catalog.split_name(name, version)
        self._catalog.refuse_unknown(name, version, is_on_disk=True)
        async with self._turns[name]:
            version = self._catalog.ask(name, version)
            errors = await self._reload.model(name, is_retry=True, is_urgent=True)
        if error := errors.get((name, version)) if version else next(iter(errors.values()), None):
            raise error
        slot = self._catalog.slot_of(name, version)
        if slot is None:
            raise UnavailableError(f"model {name!r} was put away while it was loaded; send the request again")
        return slot.engine

    def add(self, name: str, bound: Bound) -> Engine:
        """Serve a model of this process until it is unloaded; there are no files to load it from again."""
        return self._shelf.add(name, bound)

    async def unload(self, name: str, version: str | None = None) -> None:
        """Let a model answer what it accepted, then free it. Raises UnknownModelError if it is not there."""
        name, version = self._catalog.split_name(name, version)
        self._catalog.refuse_unknown(name, version)
        async with self._turns[name]:
            for key in self._catalog.renounce(name, version):
                await self._shelf.put_away(key, self._settings.drain_s)

    async def close(self) -> None:
        """Unload everything."""
        await self._shelf.close()

    async def _reload_one(self, name: str, is_retry: bool = False) -> dict[Key, Exception]:
        async with self._turns[name]:
            return await self._reload.model(name, is_retry)

    async def _prune(self) -> None:
        """Make room on the disk; that it fails keeps nobody from serving."""
        try:
            await asyncio.to_thread(self._source.prune)
        except OSError as error:
            _log.warning("copies that nobody needs stay: %s", error)

    async def _try_refresh(self) -> None:
        """Where the repository cannot be read, what was seen of it before has to do."""
        try:
            await asyncio.to_thread(self._source.refresh)
        except ArtifactError as error:
            _log.error("%s", error)


def _session_limits(settings: Settings) -> SessionLimits:
    return SessionLimits(
        settings.session_idle_s, settings.max_sessions, settings.max_client_sessions, settings.session_bytes
    )
