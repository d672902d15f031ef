"""What follows from a look at the repository: new versions are loaded beside the old, then the old ones go.

Nothing that serves is given up for something that does not: a version that fails to load, a settings file that cannot
be read and a folder that cannot be listed leave everything as it was, with the reason beside it.
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from models.artifact import SETTINGS
from models.errors import ArtifactError, FathomError
from models.signature import VerifySettings
from service.repository.catalog import Catalog
from service.repository.loader import FullError
from service.repository.model_settings import ModelSettings, parse_model_settings
from service.repository.shelf import Shelf
from service.repository.slots import Entry, Key
from service.repository.source import Source

_log = logging.getLogger("fathom.registry")


class Reload:
    """Applies the repository to what is loaded, model by model."""

    def __init__(
        self, catalog: Catalog, source: Source, shelf: Shelf, verify_settings: VerifySettings | None = None
    ) -> None:
        self._catalog, self._source, self._shelf, self._verify_settings = catalog, source, shelf, verify_settings

    async def model(self, name: str, is_retry: bool = False, is_urgent: bool = False) -> dict[Key, Exception]:
        """Bring one model to what the repository says, and return what is wrong, by version, the newest first.

        What failed before is tried again when its files or settings changed, or with `is_retry`.
        """
        on_disk, complaint = self._source.versions().get(name, []), None
        try:
            settings = await self._read(name, on_disk)
        except FathomError as error:
            if not self._catalog.is_adopted(name):
                return self._fail(name, on_disk[-1], error)
            settings, complaint = self._catalog.settings_of(name), error
        errors: dict[Key, Exception] = {}
        wanted = self._catalog.wanted(name, settings, on_disk)
        for version in reversed(wanted):
            if failure := await self._update((name, version), settings, is_retry, is_urgent):
                errors[name, version] = failure
        complaint = complaint or self._adopt(name, settings)
        self._complain(name, complaint)
        await self._let_go(name, on_disk, set(wanted))
        return errors if complaint is None or errors or not on_disk else {(name, on_disk[-1]): complaint}

    async def _read(self, name: str, on_disk: Sequence[str]) -> ModelSettings:
        place = f"{name}/{SETTINGS}"
        try:
            found = await asyncio.to_thread(self._source.settings_of, name) if on_disk else None
        except OSError as error:
            raise ArtifactError(f"{place} cannot be read: {error.strerror or error}; correct or remove it") from error
        if found is None:
            return ModelSettings()
        if self._verify_settings:
            self._verify_settings(name, found.content, found.signature)
        settings = parse_model_settings(found.content, place)
        settings.check(place, on_disk)
        return settings

    def _fail(self, name: str, version: str, error: FathomError) -> dict[Key, Exception]:
        """Without settings that could be used, now or before, a model does not serve."""
        self._complain(name, error)
        self._catalog.enter((name, version), Entry("failed", reason=str(error)))
        return {(name, version): error}

    async def _update(self, key: Key, settings: ModelSettings, is_retry: bool, is_urgent: bool) -> Exception | None:
        stamp = await self.stamp(key, settings)
        entry = self._catalog.entries.get(key, Entry("available"))
        if entry.slot and (entry.slot.stamp == stamp or entry.slot.is_bound):
            if entry.reason:
                self._catalog.enter(key, replace(entry, reason="", stamp=""))
            return None
        if entry.reason and entry.stamp == stamp and not is_retry:
            return None
        is_served = any(one.slot for (name, _), one in self._catalog.entries.items() if name == key[0])
        try:
            await self._shelf.bring(key, settings, stamp, is_urgent or is_served)
        except FullError:
            pass
        except Exception as error:
            _log.error("model %s version %s did not load: %s", *key, error, exc_info=not isinstance(error, FathomError))
            return error
        return None

    async def stamp(self, key: Key, settings: ModelSettings) -> str:
        """Changes with the files of a version, and with the settings that it is opened with."""
        try:
            files = await asyncio.to_thread(self._source.stamp_of, *key)
        except (OSError, FathomError) as error:
            files = f"unreadable: {error}"
        return hashlib.sha256(f"{files} {settings.opening}".encode()).hexdigest()

    def _adopt(self, name: str, settings: ModelSettings) -> FathomError | None:
        """Put settings in force; not if they send requests to what does not serve while those before do not."""
        catalog = self._catalog
        missing = [version for version in settings.named if not catalog.may_answer((name, version))]
        if missing and catalog.is_adopted(name) and settings != catalog.settings_of(name):
            field = f"{name}/{SETTINGS}: {settings.named[missing[0]]}"
            return ArtifactError(f"{field}: version {missing[0]!r} does not serve; the settings before stay in force")
        catalog.adopt(name, settings)
        return None

    async def _let_go(self, name: str, on_disk: Sequence[str], wanted: set[str]) -> None:
        """Retire versions that are gone, and those no longer wanted once one that is wanted serves."""
        catalog = self._catalog
        wanted |= set(catalog.wanted(name, catalog.settings_of(name), on_disk))
        is_served = any(catalog.may_answer((name, version)) for version in wanted)
        for key in [key for key, entry in catalog.entries.items() if key[0] == name and not _is_bound(entry)]:
            if key[1] in on_disk:
                if key[1] not in wanted and (is_served or not catalog.slot_of(*key)):
                    self._shelf.retire(key)
            elif await self._is_gone(key):
                self._shelf.retire(key)
        for key in [key for key in catalog.is_asked if key[0] == name and key[1] not in on_disk]:
            del catalog.is_asked[key]
        if not on_disk and not any(model == name for model, _ in catalog.entries):
            catalog.forget(name)

    async def _is_gone(self, key: Key) -> bool:
        """Whether a version was removed; one that cannot be read for another reason serves on, and says so."""
        try:
            await asyncio.to_thread(self._source.stamp_of, *key)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, FathomError) as error:
            if entry := self._catalog.entries.get(key):
                self._catalog.enter(key, replace(entry, reason=f"its folder cannot be read: {error}"))
        return False

    def _complain(self, name: str, complaint: FathomError | None) -> None:
        said = str(complaint or "")
        if said and self._catalog.complaints.get(name) != said:
            _log.error("model %s: %s", name, said)
        self._catalog.complaints[name] = said


def _is_bound(entry: Entry) -> bool:
    return bool(entry.slot and entry.slot.is_bound)
