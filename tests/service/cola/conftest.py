"""Databases for what is remembered: a SQLite file, this process's memory, and a PostgreSQL server of the tests' own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from service.cola.database import Database

Open = Callable[[], AbstractAsyncContextManager[Database]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that ends with the tests; it refuses to run as root, so root runs it as nobody."""
    binaries = _postgres_binaries()
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def run(*command: str) -> None:
            subprocess.run(command, check=True, capture_output=True, user=user, cwd=folder, timeout=120)

        data = f"{folder}/data"
        run(f"{binaries}/initdb", "--pgdata", data, "--username", "fathom", "--auth", "trust", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = (f"{binaries}/pg_ctl", "--pgdata", data, "--wait")
        run(*control, "--log", f"{folder}/log", "--options", options, "start")
        try:
            yield f"postgresql+psycopg://fathom:secret@127.0.0.1:{port}/postgres"
        finally:
            run(*control, "--mode", "immediate", "stop")


@pytest.fixture(params=["file", "memory", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Open the same empty database as often as wanted; in memory, once."""
    place = {
        "file": lambda: str(tmp_path / "chains.db"),
        "memory": lambda: ":memory:",
        "postgres": lambda: _empty(request),
    }
    return database_at(place[request.param]())


@pytest.fixture(params=["file", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of an empty database that several processes can use at once."""
    return _empty(request) if request.param == "postgres" else str(tmp_path / "chains.db")


def database_at(place: str) -> Open:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Database]:
        database = Database(place, Path("repository"))
        try:
            yield database
        finally:
            await database.close()

    return opening


def _postgres_binaries() -> Path:
    """Where initdb and pg_ctl are; Debian keeps them out of the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve()] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert places, "PostgreSQL is not installed; apt-get install postgresql"
    return places[-1].parent


def _empty(request: pytest.FixtureRequest) -> str:
    """A schema of this test's own."""
    import sqlalchemy

    url: str = request.getfixturevalue("postgres")
    name = f"test_{os.urandom(8).hex()}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return f"{url}?options=-csearch_path%3D{name}"
