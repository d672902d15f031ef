"""A version's folder that appears in the repository complete or not at all. Knows no format."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from models.artifact import MANIFEST, FileRecord, Format, Manifest, Name, file_record
from models.errors import ArtifactError, InputError


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a version was published, and why formats that were asked for are not in it."""

    directory: Path
    manifest: Manifest
    refused: Mapping[Format, str]


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Hash and size of every file under `folder`, by its path relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_record(path) for path in paths}


@contextmanager
def new_version(repository: Path, name: str, version: str, overwrite: bool) -> Iterator[Path]:
    """A folder beside the others, hidden until the block ends, then synced and renamed to `<name>/<version>`.

    Removed if the block raises. Raises InputError for names that make no folder, ArtifactError if the version is there
    already and `overwrite` is not set, or if the repository cannot be written.
    """
    for what, value in (("model name", name), ("version", version)):
        _check_name(what, value)
    target = repository / name / version
    _check_free(target, overwrite)
    hidden = repository / f".{name}-{version}-{uuid4().hex}"
    try:
        hidden.mkdir(parents=True)
        yield hidden
        _share(hidden, target.parent)
        _sync(hidden)
        _check_free(target, overwrite)
        target.parent.mkdir(exist_ok=True)
        _put(hidden, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; make room or name another --repository") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)  # what was replaced, or what was not finished


def _share(folder: Path, versions: Path) -> None:
    """Let files that another version of the model has, too, be that version's: once on disk, and once where mapped."""
    mine = _recorded(folder)
    for other in versions.glob(f"[!.]*/{MANIFEST}"):
        theirs = {record: name for name, record in _recorded(other.parent).items()}
        for name, record in mine.items():
            if record in theirs and record.size_bytes:
                _link(other.parent / theirs[record], folder / name)


def _recorded(folder: Path) -> Mapping[str, FileRecord]:
    """The files of a version as its manifest lists them; none where it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes()).files
    except (OSError, ValidationError):
        return {}


def _link(theirs: Path, mine: Path) -> None:
    """Put a hard link in the place of a file of the same content, if it really is the same and the disk lets us."""
    if not theirs.is_file() or theirs.is_symlink() or file_record(theirs) != file_record(mine):
        return
    spare = mine.with_name(f".{mine.name}-{uuid4().hex}")
    try:
        os.link(theirs, spare)
    except OSError:  # another file system, or one without links
        return
    spare.replace(mine)


def _check_name(what: str, value: str) -> None:
    try:
        TypeAdapter(Name).validate_python(value)
    except ValidationError as error:
        raise InputError(
            f"{value!r} is no {what}; use up to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        ) from error


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target} exists; pass --overwrite to replace it, or another --name or version")


def _put(hidden: Path, target: Path) -> None:
    """Move a folder into place; what was there before is afterwards where the new folder was."""
    if not target.exists():
        hidden.rename(target)
    elif not _exchange(hidden, target):
        old = hidden.with_name(f"{hidden.name}-old")
        target.rename(old)
        hidden.rename(target)
        shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step of the file system; False where it cannot (not Linux, some network mounts)."""
    if sys.platform != "linux":
        return False
    at_current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library without it
        return False
    return bool(rename(at_current, bytes(first), at_current, bytes(second), exchange) == 0)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (folder, *folder.rglob("*/")):
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
