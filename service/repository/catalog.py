"""What is known of every version, and which of them answers a name. Opens nothing and waits for nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from models.artifact import version_order
from models.errors import UnavailableError, UnknownModelError
from service.repository.model_settings import ModelSettings
from service.repository.slots import Entry, Key, Slot
from service.repository.split import Split

_PLAIN = ModelSettings()


class Catalog:
    """Versions on disk and in memory, and the settings in force. Lives on the event loop.

    A lazy one is of a server whose models take turns in memory: a version that is wanted answers although it is not
    loaded, for it will be.
    """

    def __init__(self, on_disk: Callable[[], Mapping[str, Sequence[str]]], is_lazy: bool = False) -> None:
        self._on_disk, self._is_lazy = on_disk, is_lazy
        self.entries: dict[Key, Entry] = {}
        self.complaints: dict[str, str] = {}  # why a model's settings are not in force, by model
        self.is_asked: dict[Key, bool] = {}  # by a person: to be loaded, or not to be
        self._settings: dict[str, ModelSettings] = {}
        self._splits: dict[str, Split] = {}
        # What was looked up since the last change.
        self._found: dict[tuple[str, str | None], Slot] = {}
        self._coming: dict[str, list[str]] = {}

    def enter(self, key: Key, entry: Entry) -> None:
        """Note where a version stands."""
        self.entries[key] = entry
        self._changed()

    def drop(self, key: Key) -> Entry | None:
        """Forget a version."""
        self._changed()
        return self.entries.pop(key, None)

    def settings_of(self, name: str) -> ModelSettings:
        """The settings in force for a model."""
        return self._settings.get(name, _PLAIN)

    def adopt(self, name: str, settings: ModelSettings) -> None:
        """Put settings in force; turns that a split has begun go on where its weights stay the same."""
        if name in self._splits and self._splits[name].weights == Split(settings.weights).weights:
            split = self._splits[name]
        else:
            split = Split(settings.weights)
        self._settings[name], self._splits[name] = settings, split
        self._changed()

    def is_adopted(self, name: str) -> bool:
        """Whether settings were put in force for a model, plain ones included."""
        return name in self._settings

    def forget(self, name: str) -> None:
        """A model is gone."""
        self._settings.pop(name, None)
        self._splits.pop(name, None)
        self.complaints.pop(name, None)

    def states(self) -> dict[Key, Entry]:
        """Every version in the repository or in memory, by (model, version)."""
        on_disk = ((name, version) for name, found in self._on_disk().items() for version in found)
        found = {
            **{key: Entry("available") for key in on_disk},
            **{key: _seen(one) for key, one in self.entries.items()},
        }
        return {
            key: entry if entry.reason else replace(entry, reason=self.complaints.get(key[0], ""))
            for key, entry in found.items()
        }

    def ready(self) -> list[tuple[Key, Slot]]:
        """What is loaded from files."""
        loaded = ((key, entry.slot) for key, entry in self.entries.items() if entry.slot)
        return [(key, slot) for key, slot in loaded if not slot.is_bound]

    def wanted(self, name: str, settings: ModelSettings, on_disk: Sequence[str]) -> list[str]:
        """The versions that should serve, oldest first: those of the settings, and those that were asked for."""
        wanted = settings.wanted(on_disk)
        return [version for version in on_disk if self.is_asked.get((name, version), version in wanted)]

    def slot_of(self, name: str, version: str | None) -> Slot | None:
        """What is loaded of a version, or of the newest that is."""
        slots = {found: entry.slot for (model, found), entry in self.entries.items() if model == name and entry.slot}
        return slots.get(version or max(slots, key=version_order, default=""))

    def ask(self, name: str, version: str | None) -> str | None:
        """Somebody wants a version or label to be loaded, or else what the settings want; returns the version.

        Raises UnknownModelError.
        """
        on_disk = self._on_disk().get(name, ())
        named = self.settings_of(name).version_of(version) if version else None
        if not on_disk or (named and named not in on_disk):
            self.refuse_unknown(name, version, is_on_disk=True)
        for found in on_disk:
            if named in (None, found) and not self.is_asked.get((name, found)):
                self.is_asked.pop((name, found), None)
        if named and named not in self.settings_of(name).wanted(on_disk):
            self.is_asked[name, named] = True
        return named

    def renounce(self, name: str, version: str | None) -> list[Key]:
        """Somebody wants a version or label not to be loaded, or none of a model; returns the versions.

        They come back when they are asked for. Raises UnknownModelError.
        """
        named = self.settings_of(name).version_of(version) if version else None
        keys = [key for key in self.states() if key[0] == name and named in (None, key[1])]
        if not keys:
            self.refuse_unknown(name, version)
        self.is_asked.update(dict.fromkeys(keys, False))
        self._changed()
        return keys

    def may_answer(self, key: Key) -> bool:
        """Whether a version serves, or will for the next request."""
        entry = self.entries.get(key)
        return bool(entry and entry.slot and not entry.slot.engine.trouble) or self.is_due(key)

    def find(self, name: str, version: str | None) -> Slot | None:
        """What answers a name if that was settled before."""
        return self._found.get((name, version))

    def settle(self, name: str, version: str | None, slot: Slot) -> None:
        """Answer a name with this version until something changes; names that are divided are settled each time."""
        split = self._splits.get(name.partition("@")[0])
        if version or "@" in name or not (split and split.weights):
            self._found[name, version] = slot

    def key_of(self, name: str, version: str | None, takes_turn: bool = False) -> Key:
        """The model and version that a request names: `model@label` does without the second.

        Raises UnknownModelError listing what is there, or UnavailableError where nothing could answer.
        """
        name, version = self.split_name(name, version)
        if version:
            key = name, self.settings_of(name).version_of(version)
            if key not in self.entries and not self.is_due(key):
                self.refuse_unknown(name, version)
                raise UnavailableError(f"model {name!r} version {key[1]!r} is not loaded; POST /models/{name}/load")
            return key
        chosen = self._default(name, takes_turn)
        if chosen is None:
            self.refuse_unknown(name, None)
            raise UnavailableError(f"model {name!r} is not loaded; POST /models/{name}/load")
        return name, chosen

    def split_name(self, name: str, version: str | None) -> tuple[str, str | None]:
        """`model@version` as its parts, unless there is a version beside."""
        model, at, named = name.partition("@")
        return (model, named) if at and not version else (name, version)

    def is_due(self, key: Key) -> bool:
        """Whether a version that is not loaded will be, for the next request."""
        entry = self.entries.get(key)
        return key[1] in self._lazily(key[0]) and not (entry and entry.state == "failed")

    def _lazily(self, name: str) -> list[str]:
        """The versions that a request may load."""
        if not self._is_lazy:
            return []
        if name not in self._coming:
            self._coming[name] = self.wanted(name, self.settings_of(name), self._on_disk().get(name, ()))
        return self._coming[name]

    def _changed(self) -> None:
        self._found.clear()
        self._coming.clear()

    def _default(self, name: str, takes_turn: bool) -> str | None:
        """By the split, else the newest: of those that serve or did before they made room, else of those to come."""
        known = {version: entry for (model, version), entry in self.entries.items() if model == name}
        coming = {version for version in self._lazily(name) if self.is_due((name, version))}
        serving = {found for found, entry in known.items() if entry.slot or (found in coming and _made_room(entry))}
        split = self._splits.get(name)
        if split and (chosen := split.next(serving | coming) if takes_turn else split.heaviest(serving | coming)):
            return chosen
        return max(serving or coming or known, key=version_order, default=None)

    def refuse_unknown(self, name: str, version: str | None, is_on_disk: bool = False) -> None:
        """Raise UnknownModelError if there is no such model, version or label, listing what is there."""
        labels = self.settings_of(name).labels
        named = labels.get(version or "", version)
        known = [(model, one) for model, found in self._on_disk().items() for one in found]
        known = known if is_on_disk else list(self.states())
        if any(name == model and named in (None, found) for model, found in known):
            return
        told = f"; labels are {labels}" if labels else ""
        raise UnknownModelError(
            f"no model {name!r}{f' version or label {version!r}' if version else ''}; "
            f"there are {[f'{model}/{found}' for model, found in known]}{told}"
        )


def _seen(entry: Entry) -> Entry:
    """Where a version stands for others: what is loaded may have lost what runs it."""
    trouble = entry.slot.engine.trouble if entry.slot else None
    if trouble is None:
        return entry
    return replace(entry, state="failed" if trouble.is_final else "loading", reason=str(trouble))


def _made_room(entry: Entry) -> bool:
    """Loaded before, until another needed its place."""
    return entry.state in ("available", "unloading")
