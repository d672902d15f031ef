"""A place behind a URL, as fsspec reaches it: s3://, gs://, http:// with index pages, and more. Knows no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.artifact import Name
from models.errors import ArtifactError

_NAME: TypeAdapter[str] = TypeAdapter(Name)
# What file systems call a sign that a file has changed; a web server says it of one file, not in a listing.
_DATES = ("ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "updated", "md5Hash")


class Place:
    """Folders and files below a URL, named by their parts. Blocks. Everything raises ArtifactError naming the place."""

    def __init__(self, url: str) -> None:
        self.shown = _without_password(url)
        self._fs, self._root = _open(url, self.shown)

    def forget(self) -> None:
        """Look anew at what was listed before."""
        self._fs.invalidate_cache()

    def folders(self, *parts: str) -> list[str]:
        """Folders in a folder whose names can be those of models or versions; others are none of ours."""
        with self._reaching(*parts):
            listed = self._fs.ls(self._at(*parts), detail=True)
        found = {one["name"].rstrip("/").rpartition("/")[2] for one in listed if one["type"] == "directory"}
        return sorted(name for name in found if _is_name(name))

    def has(self, *parts: str) -> bool:
        """Whether there is such a file."""
        with self._reaching(*parts):
            return bool(self._fs.exists(self._at(*parts)))

    def read(self, *parts: str) -> bytes | None:
        """The content of a file; None if there is none."""
        with self._reaching(*parts):
            try:
                content: bytes = self._fs.cat_file(self._at(*parts))
            except FileNotFoundError:
                return None
        return content

    def download(self, into: Path, *parts: str) -> None:
        """Copy one file."""
        with self._reaching(*parts):
            self._fs.get_file(self._at(*parts), str(into))

    def facts(self, *parts: str) -> str:
        """Sizes and dates of all files under a folder, as far as the place tells them."""
        with self._reaching(*parts):
            found = self._fs.find(self._at(*parts), detail=True)
            told = {path: one if _is_dated(one) else self._fs.info(path) for path, one in sorted(found.items())}
        return "\n".join(
            f"{path} {[str(one.get(fact, '')) for fact in ('size', *_DATES)]}" for path, one in told.items()
        )

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    @contextmanager
    def _reaching(self, *parts: str) -> Iterator[None]:
        """Whatever a file system raises, as one error of ours."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace(self._root, self.shown)
            raise ArtifactError(f"{'/'.join((self.shown, *parts))} cannot be read: {reason:.300}") from error


def _open(url: str, shown: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    remedy = "install the extra 'remote', or write s3:// or http://"
    if find_spec("fsspec") is None:
        raise ArtifactError(f"{shown} cannot be read without fsspec; {remedy}")
    import fsspec

    try:
        file_system, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise ArtifactError(f"{shown} cannot be read: {error}; {remedy}") from error
    return file_system, root.rstrip("/")


def _is_dated(listed: dict[str, Any]) -> bool:
    return any(listed.get(fact) for fact in _DATES)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _is_name(name: str) -> bool:
    try:
        _NAME.validate_python(name)
    except ValidationError:
        return False
    return True
