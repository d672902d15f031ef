"""A repository behind a URL, copied version by version into a folder of this machine as versions are wanted.

A copy is hidden until every hash is right. When the place cannot be reached, what was copied before serves. Copies of
versions that the place no longer has go once nobody uses them; several servers may share the folder.
"""

import hashlib
import shutil
import time
from pathlib import Path
from uuid import uuid4

from models.artifact import (
    MANIFEST,
    SETTINGS,
    FileRecord,
    Manifest,
    Verify,
    check_inside,
    file_record,
    list_versions,
    parse_manifest,
    version_order,
)
from models.errors import ArtifactError
from models.signature import SETTINGS_SIGNATURE, SIGNATURE
from service.repository import lease
from service.repository.lease import Lease
from service.repository.place import Place
from service.repository.source import MAX_SETTINGS_BYTES, SettingsFile, folder_stamp

_HIDDEN = ".fetch-"
# What a download left behind that was cut off so long ago is nobody's any more.
_STALE_S = 24 * 3600.0


class Mirror:
    """A repository with a URL and its copy in `folder`. Raises ArtifactError if what the URL needs is not installed."""

    def __init__(self, url: str, folder: Path, verify: Verify | None = None) -> None:
        self._place, self._folder, self._verify = Place(url), folder, verify
        self._listed: dict[str, list[str]] | None = None  # None until the place was reached
        self._checked: dict[Path, str] = {}  # stamps of copies whose hashes are known to be right

    def refresh(self) -> None:
        self._make_folder()
        self._place.forget()
        listed = {name: self._versions_of(name) for name in self._place.folders()}
        if not any(listed.values()):
            raise ArtifactError(f"the repository {self._place.shown} has no versions; check its place and its rights")
        self._listed = {name: versions for name, versions in listed.items() if versions}
        self._sweep()

    def versions(self) -> dict[str, list[str]]:
        return list_versions(self._folder) if self._listed is None else self._listed

    def settings_of(self, name: str) -> SettingsFile | None:
        content = self._small(name, SETTINGS)
        return None if content is None else SettingsFile(content, self._small(name, SETTINGS_SIGNATURE))

    def stamp_of(self, name: str, version: str) -> str:
        if self._listed is None:
            (self._folder / name / version / MANIFEST).stat()
            return folder_stamp(self._folder / name / version)
        if version not in self._listed.get(name, ()):
            raise FileNotFoundError(f"{self._place.shown}/{name}/{version}")
        facts = self._place.facts(name, version).encode()
        return hashlib.sha256(facts + (self._place.read(name, version, MANIFEST) or b"")).hexdigest()

    def manifest_of(self, name: str, version: str) -> bytes:
        try:
            content = self._place.read(name, version, MANIFEST)
        except ArtifactError:
            content = _content(self._folder / name / version / MANIFEST)  # a copy is better than nothing
            if content is None:
                raise
        if content is None:
            raise ArtifactError(
                f"{self._place.shown}/{name}/{version} has no {MANIFEST} any more; export the model again"
            )
        return content

    def fetch(self, name: str, version: str) -> Lease:
        target = self._folder / name / version
        while True:  # another server, with an older list, may remove a copy that nobody holds yet
            try:
                content = self._place.read(name, version, MANIFEST) or self.manifest_of(name, version)
            except ArtifactError:
                if held := lease.use(target):  # its hashes are looked at when it is loaded
                    return held
                raise
            self._fetch(name, version, content, target)
            if held := lease.use(target):
                return held

    def prune(self) -> None:
        if self._listed is None:
            return
        for name, versions in list_versions(self._folder).items():
            for version in set(versions) - set(self._listed.get(name, ())):
                self._remove(self._folder / name / version)

    def _fetch(self, name: str, version: str, content: bytes, target: Path) -> None:
        place = f"{self._place.shown}/{name}/{version}"
        manifest = parse_manifest(content, f"{place}/{MANIFEST}")
        for file in manifest.files:
            check_inside(file, f"{place}/{MANIFEST}")
        signature = self._place.read(name, version, SIGNATURE)
        hidden = self._folder / f"{_HIDDEN}{name}-{version}-{uuid4().hex}"
        try:
            hidden.mkdir(parents=True)
            (hidden / MANIFEST).write_bytes(content)
            if signature is not None:
                (hidden / SIGNATURE).write_bytes(signature)
            self._check_signature(hidden, content, place)
            target.parent.mkdir(exist_ok=True)
            with lease.alone(target.parent):  # a server that wants the same waits, and finds it there
                if not self._is_there(target, manifest, content, signature):
                    self._fill(hidden, target, manifest, f"{name}/{version}")
                    _put(hidden, target)
                    self._checked[target] = folder_stamp(target)
        except OSError as error:
            raise ArtifactError(
                f"{place} cannot be copied to {target}: {error}; make room, or set FATHOM_CACHE"
            ) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _check_signature(self, hidden: Path, content: bytes, place: str) -> None:
        try:
            if self._verify:
                self._verify(hidden, content)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(hidden), place)) from error

    def _is_there(self, target: Path, manifest: Manifest, content: bytes, signature: bytes | None) -> bool:
        """Whether the copy is complete; hashes are taken again only of one that changed since they were."""
        if _content(target / MANIFEST) != content or _content(target / SIGNATURE) != signature:
            return False
        if self._checked.get(target) != folder_stamp(target):
            if not all(_is_right(target / file, record) for file, record in manifest.files.items()):
                return False
            self._checked[target] = folder_stamp(target)
        return True

    def _fill(self, hidden: Path, old: Path, manifest: Manifest, place: str) -> None:
        """Every file of the manifest, from an older copy where that is the same."""
        for file, record in manifest.files.items():
            into = hidden / file
            into.parent.mkdir(parents=True, exist_ok=True)
            if _is_right(old / file, record):
                shutil.copyfile(old / file, into)
                continue
            self._place.download(into, *place.split("/"), file)
            if not _is_right(into, record):
                raise ArtifactError(
                    f"{self._place.shown}/{place}/{file} is not the exported file: {into.stat().st_size} bytes came, "
                    f"the manifest says {record.size_bytes} with sha256 {record.sha256[:12]}; upload it again"
                )

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"{self._folder} cannot be made: {error.strerror or error}; set FATHOM_CACHE"
            ) from error

    def _versions_of(self, name: str) -> list[str]:
        found = [version for version in self._place.folders(name) if self._place.has(name, version, MANIFEST)]
        return sorted(found, key=version_order)

    def _small(self, name: str, file: str) -> bytes | None:
        """The content of a small file of a model, from the copy while the place was not reached."""
        kept = self._folder / name / file
        if self._listed is None:
            return _content(kept)
        content = self._place.read(name, file)
        if content is not None and len(content) > MAX_SETTINGS_BYTES:
            raise ArtifactError(f"{name}/{file} has more than {MAX_SETTINGS_BYTES} bytes; correct it")
        self._keep(kept, content)
        return content

    def _keep(self, path: Path, content: bytes | None) -> None:
        """A small file in the copy, for when the place cannot be reached."""
        if _content(path) == content:
            return
        if content is None:
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}-{uuid4().hex}")
        hidden.write_bytes(content)
        hidden.replace(path)

    def _remove(self, copy: Path) -> None:
        """Remove a copy unless somebody uses it: out of sight first, so that nobody finds half of it."""
        if held := lease.seize(copy):
            with held:
                hidden = self._folder / f"{_HIDDEN}{copy.parent.name}-{copy.name}-{uuid4().hex}-gone"
                copy.rename(hidden)
            self._checked.pop(copy, None)
            shutil.rmtree(hidden, ignore_errors=True)

    def _sweep(self) -> None:
        for left in self._folder.glob(f"{_HIDDEN}*"):
            if left.stat().st_mtime < time.time() - _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def _put(hidden: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(hidden.with_name(f"{hidden.name}-old"))
    try:
        hidden.rename(target)
    except OSError:
        if not target.is_dir():  # another process was faster
            raise
    shutil.rmtree(hidden.with_name(f"{hidden.name}-old"), ignore_errors=True)


def _is_right(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.size_bytes and file_record(path) == record


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
