"""Remembered chains: what comes back, for whom, and what a broken database does to others."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.chain import Chain
from models.errors import NotFoundError, UnavailableError
from service.cola import database as database_module
from service.cola.database import FILE, Database
from service.cola.memory import Memory, Remembered, Subject

SUBJECT = Subject("1" * 64, "arith", "1", "a" * 64, "standard")
Open = Callable[[], Any]


def remembered(
    subject: Subject = SUBJECT, config: str = "c", layers: tuple[int, ...] = (0, 2), **fields: Any
) -> Remembered:
    """A chain for that subject."""
    values = {name: getattr(subject, name) for name in Subject.__dataclass_fields__}
    rest = {"reward": "agreement", "reward_value": 1.0, "certificate": {"text": "5", "oracle": False}, "created": 5.0}
    return Remembered(**values, config_hash=config * 64, chain=Chain(layers), **{**rest, **fields})


def run(work: Callable[[Database], Coroutine[Any, Any, Any]], opened: Open) -> Any:
    """What `work` returns, given a new database."""

    async def with_database() -> Any:
        async with opened() as database:
            return await work(database)

    return asyncio.run(with_database())


def recalled(database: Database, *subjects: Subject) -> Coroutine[Any, Any, dict[Subject, Chain]]:
    return database.run(lambda store: store.recall(subjects))


def test_what_was_remembered_comes_back_as_it_was(opened: Open) -> None:
    async def work(database: Database) -> None:
        one = remembered(certificate={"text": "é\u2028 \\u0000", "deep": [1, None, 0.1]}, created=1763712345.123456)
        await Memory(database).remember(one)
        assert await Memory(database).get(one.id) == one
        assert await recalled(database, SUBJECT) == {SUBJECT: Chain((0, 2))}

    run(work, opened)


def test_the_same_search_replaces_and_of_different_ones_the_newest_is_recalled(opened: Open) -> None:
    async def work(database: Database) -> None:
        memory = Memory(database)
        await memory.remember(remembered(layers=(0,)), remembered(layers=(1,)))
        await memory.remember(remembered(config="d", layers=(2,), created=4.0))
        assert [one.chain.layers for one in await memory.page({}, 10)] == [(1,), (2,)]
        assert await recalled(database, SUBJECT) == {SUBJECT: Chain((1,))}
        await memory.remember(remembered(config="d", layers=(0, 0), created=6.0))
        assert await recalled(database, SUBJECT) == {SUBJECT: Chain((0, 0))}

    run(work, opened)


@pytest.mark.parametrize("name", Subject.__dataclass_fields__)
def test_a_chain_of_another_input_artifact_or_residual_form_is_never_found(opened: Open, name: str) -> None:
    other = replace(SUBJECT, **{name: "2" * 64})

    async def work(database: Database) -> None:
        await Memory(database).remember(remembered())
        assert await recalled(database, other) == {}
        await Memory(database).remember(remembered(other, layers=(1,)))
        assert await recalled(database, other) == {other: Chain((1,))}
        assert await recalled(database, SUBJECT) == {SUBJECT: Chain((0, 2))}

    run(work, opened)


def test_thousands_are_recalled_exported_and_paged_through_each_once(opened: Open) -> None:
    subjects = [replace(SUBJECT, input_hash=f"{number:064x}") for number in range(1200)]

    async def work(database: Database) -> None:
        memory = Memory(database)
        await memory.remember(*(remembered(one, layers=(n % 3,), created=n // 7) for n, one in enumerate(subjects)))
        assert len(await recalled(database, *subjects)) == 1200
        found = [one async for one in memory.all()]
        assert [one.created for one in found] == sorted((one.created for one in found), reverse=True)
        assert {one.input_hash for one in found} == {one.input_hash for one in subjects}
        assert len(found) == 1200
        first = await memory.page({}, 5)
        second = await memory.page({}, 5, (first[-1].created, first[-1].id))
        assert found[:10] == [*first, *second]

    run(work, opened)


def test_pages_can_be_narrowed(opened: Open) -> None:
    async def work(database: Database) -> None:
        memory = Memory(database)
        await memory.remember(remembered(), remembered(replace(SUBJECT, model="digits"), reward="target"))
        assert [one.model for one in await memory.page({"model": "arith"}, 10)] == ["arith"]
        assert [one.model for one in await memory.page({"reward": "target", "version": "1"}, 10)] == ["digits"]
        assert await memory.page({"reward": "target", "model": "arith"}, 10) == []

    run(work, opened)


def test_what_is_forgotten_is_gone(opened: Open) -> None:
    async def work(database: Database) -> None:
        memory, one = Memory(database), remembered()
        await memory.remember(one)
        await memory.forget(one.id)
        assert await recalled(database, SUBJECT) == {}
        for gone in (memory.get(one.id), memory.forget(one.id)):
            with pytest.raises(NotFoundError, match=f"no chain '{one.id}'"):
                await gone

    run(work, opened)


def test_processes_that_write_at_once_lose_nothing(shared: str) -> None:
    code = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from models.chain import Chain
from service.cola.database import Database
from service.cola.memory import Memory, Remembered

async def write(place, mine):
    database = Database(place, Path("repository"))
    for number in range(60):
        hashes = (f"{number:064x}", f"{mine}{number:063x}")  # the first of both processes, the second of this one
        for digest in hashes:
            one = Remembered(digest, "arith", "1", "a" * 64, "standard", "c" * 64, Chain((number,)), "target", 1, {}, 1)
            await Memory(database).remember(one)
    await database.close()

asyncio.run(write(sys.argv[1], sys.argv[2]))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, shared, mine]) for mine in "12"]
    assert [writer.wait(120) for writer in writers] == [0, 0]

    async def count(database: Database) -> int:
        return len([one async for one in Memory(database).all()])

    assert asyncio.run(_with(Database(shared, Path("repository")), count)) == 180


def test_a_damaged_file_is_named_left_alone_and_read_again_once_repaired(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_bytes(b"no database" * 1000)

    async def work(database: Database) -> None:
        assert database.may_hold_something
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"\.fathom\.db' cannot be used: file is not a database; repair"):
                await Memory(database).check()
        assert file.read_bytes().startswith(b"no database")
        file.unlink()
        await Memory(database).check()

    asyncio.run(_with(Database("", tmp_path), work))


def test_where_no_file_can_be_written_chains_last_as_long_as_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).mkdir()

    async def work(database: Database) -> None:
        await Memory(database).remember(remembered())
        assert await recalled(database, SUBJECT) == {SUBJECT: Chain((0, 2))}

    for repository in (tmp_path, tmp_path / "missing"):
        asyncio.run(_with(Database("", repository), work))
        assert f"{repository / FILE} cannot be written; chains and jobs are kept in memory" in caplog.text


def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        assert not database.may_hold_something

    asyncio.run(_with(Database("", tmp_path), work))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("{}/missing/chains.db", "unable to open database file"),
        ("nosuch://user:secret@host/db", "nosuch"),
        ("postgresql+nosuch://user:secret@host/db?password=secret", "nosuch"),
        ("postgresql+psycopg://user:secret@127.0.0.1:1/db", "127.0.0.1"),
        ("://", "Could not parse"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_without_its_password(tmp_path: Path, place: str, words: str) -> None:
    async def work(database: Database) -> None:
        with pytest.raises(UnavailableError) as caught:
            await Memory(database).check()
        assert words in str(caught.value)
        assert "set FATHOM_MEMORY" in str(caught.value)
        assert "secret" not in str(caught.value)

    asyncio.run(_with(Database(place.format(tmp_path), tmp_path), work))


def test_the_event_loop_goes_on_while_the_database_is_slow(opened: Open) -> None:
    async def work(database: Database) -> None:
        slow = asyncio.ensure_future(database.run(lambda store: time.sleep(0.3)))
        ticks = 0
        while not slow.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 10

    run(work, opened)


def test_a_database_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_PATIENCE_S", 0.05)

    async def work(database: Database) -> None:
        await Memory(database).check()
        with pytest.raises(UnavailableError, match="no answer within"):
            await database.run(lambda store: time.sleep(0.5))

    asyncio.run(_with(Database(":memory:", tmp_path), work))


def test_the_id_is_the_same_on_every_server() -> None:
    assert remembered().id == remembered(layers=(1,), created=9.0, reward="target").id
    assert remembered().id == "f48965cd81fb7d59a1642c1d5e59a127"


def test_a_server_that_remembers_nothing_does_not_import_sqlalchemy() -> None:
    code = "import sys, service.app, service.cli; print('sqlalchemy' in sys.modules)"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


async def _with(database: Database, work: Callable[[Database], Coroutine[Any, Any, Any]]) -> Any:
    try:
        return await work(database)
    finally:
        await database.close()
