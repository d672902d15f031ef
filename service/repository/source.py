"""Where versions come from: what a repository has to answer, and the one that is a folder of this machine."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from models.artifact import MANIFEST, SETTINGS, Verify, list_versions
from models.errors import ArtifactError
from models.signature import SETTINGS_SIGNATURE
from service.repository.lease import Lease
from service.settings import Settings

# Far above any settings file, far below what would hurt.
MAX_SETTINGS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """The bytes of a settings file, believed by nobody yet, and of the signature beside it."""

    content: bytes
    signature: bytes | None


class Source(Protocol):
    """A repository. Everything but `versions` may block."""

    def refresh(self) -> None:
        """Look at what is there now. Raises ArtifactError if that cannot be seen; what was seen before stays."""

    def versions(self) -> dict[str, list[str]]:
        """The versions of each model, oldest first."""

    def settings_of(self, name: str) -> SettingsFile | None:
        """A model's settings file, if it has one. Raises OSError or ArtifactError."""

    def stamp_of(self, name: str, version: str) -> str:
        """Changes when the files of a version do. Raises OSError or ArtifactError."""

    def manifest_of(self, name: str, version: str) -> bytes:
        """The content of a version's manifest, nothing else fetched. Raises OSError or ArtifactError."""

    def fetch(self, name: str, version: str) -> Lease:
        """The folder of a version on this machine, there until it is let go. Raises ArtifactError."""

    def prune(self) -> None:
        """Remove copies of what the repository no longer has and nobody uses."""


class Folder:
    """A repository in the file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refresh(self) -> None:
        """Raise ArtifactError if the folder cannot be listed."""
        try:
            os.scandir(self.path).close()
        except OSError as error:
            raise ArtifactError(f"the repository {self.path} cannot be read: {error.strerror or error}") from error

    def versions(self) -> dict[str, list[str]]:
        return list_versions(self.path)

    def settings_of(self, name: str) -> SettingsFile | None:
        content = self._small(self.path / name / SETTINGS)
        return None if content is None else SettingsFile(content, self._small(self.path / name / SETTINGS_SIGNATURE))

    def stamp_of(self, name: str, version: str) -> str:
        (self.path / name / version / MANIFEST).stat()
        return folder_stamp(self.path / name / version)

    def manifest_of(self, name: str, version: str) -> bytes:
        return (self.path / name / version / MANIFEST).read_bytes()

    def fetch(self, name: str, version: str) -> Lease:
        directory = self.path / name / version
        self._check_inside(directory)
        return Lease(directory)

    def prune(self) -> None:
        """There are no copies."""

    def _small(self, path: Path) -> bytes | None:
        """The content of a small file, None if there is none."""
        if not os.path.lexists(path):
            return None
        self._check_inside(path)
        with path.open("rb") as file:
            content = file.read(MAX_SETTINGS_BYTES + 1)
        if len(content) > MAX_SETTINGS_BYTES:
            raise ArtifactError(f"{path} has more than {MAX_SETTINGS_BYTES} bytes; correct or remove it")
        return content

    def _check_inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ArtifactError(
                f"{path} leads out of the repository to {path.resolve()}; put the files themselves there"
            )


def folder_stamp(directory: Path) -> str:
    """Changes when a file under a folder is written, replaced, added or removed."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError as error:
                digest.update(f"{path}\n{error}\n".encode())
            else:
                digest.update(f"{path}\n{found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_source(settings: Settings, verify: Verify | None = None) -> Source:
    """The repository of these settings. Raises ArtifactError if what a URL needs is not installed."""
    if isinstance(settings.repository, Path):
        return Folder(settings.repository)
    from service.repository.mirror import Mirror  # an optional extra

    return Mirror(settings.repository, settings.folder, verify)
