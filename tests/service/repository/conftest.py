"""A repository that tests change, and a registry on it, without HTTP."""

import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings


@dataclass(frozen=True)
class Repository:
    """Versions of `tinymlp` under any name, published as an export does: complete or not at all."""

    path: Path
    original: Path

    def publish(self, name: str, version: str, **members: Any) -> Path:
        hidden, target = self.path / f".{name}-{version}", self.path / name / version
        shutil.copytree(self.original, hidden)
        document = json.loads((hidden / "manifest.json").read_text())
        (hidden / "manifest.json").write_text(json.dumps({**document, "name": name, "version": version, **members}))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        return hidden.rename(target)

    def remove(self, name: str, version: str | None = None) -> None:
        shutil.rmtree(self.path / name / (version or ""))

    def settings(self, name: str, **members: Any) -> None:
        (self.path / name / "settings.json").write_text(json.dumps(members))


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Repository:
    """Empty as yet."""
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository", tiny_repository / "tinymlp" / "1")


Open = Callable[..., AbstractAsyncContextManager[Registry]]


@pytest.fixture
def opened(repository: Repository) -> Open:
    """A registry that has loaded everything; in the end nothing is left of that."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[Registry]:
        given = {"repository": repository.path, "backend": "fake", "warm_up": False, **settings}
        before = set(threading.enumerate())  # servers that other tests of this process have open
        registry = Registry(Settings(**given), Metrics())
        await registry.load_all()
        try:
            yield registry
        finally:
            await registry.close()
            assert registry._shelf._room._num_bytes == 0
            assert not [one for one in set(threading.enumerate()) - before if one.name == "fathom-device"]

    return run


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines run on asyncio."""
    return "asyncio"
