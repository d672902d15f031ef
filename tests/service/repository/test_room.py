"""Models that take turns in memory: who makes room, who waits, and who is never sent away."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from models.artifact import read_manifest
from models.errors import DeadlineError, UnavailableError
from service.engine.tensor import TensorEngine
from service.engine.terms import Terms, reset_terms, set_terms
from service.registry import Registry
from service.repository import loader
from service.repository.slots import Holding

pytestmark = pytest.mark.anyio
ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


@pytest.fixture
def size(repository: Any) -> int:
    """Bytes of one model, of which there are three."""
    for name in ("a", "b", "c"):
        directory = repository.publish(name, "1")
    return sum(record.size_bytes for record in read_manifest(directory).files.values())


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were opened."""
    names: list[str] = []
    plain = loader.open_version

    def counted(directory: Path, *arguments: Any) -> Any:
        names.append(directory.parent.name)
        time.sleep(0.02)
        return plain(directory, *arguments)

    monkeypatch.setattr(loader, "open_version", counted)
    return names


def loaded(registry: Registry) -> str:
    return "".join(name for (name, _), entry in registry.states().items() if entry.slot)


async def ask(registry: Registry, name: str) -> None:
    with Holding():
        engine = await registry.get(name)
        assert isinstance(engine, TensorEngine)
        await engine.infer([ROW], "full")


async def test_models_beyond_the_budget_load_on_first_use_in_place_of_the_longest_unused(
    repository: Any, opened: Any, size: int, opens: list[str]
) -> None:
    async with opened(models_bytes=2 * size) as registry:
        assert loaded(registry) == "ab"
        assert registry.states()["c", "1"].state == "available"
        assert registry.is_ready
        registry.check("c")  # it would answer
        await ask(registry, "a")
        await ask(registry, "c")
        assert loaded(registry) == "ac"
        await ask(registry, "b")
        assert loaded(registry) == "bc"
        await registry.reload()  # which puts nobody in the place of another
        assert loaded(registry) == "bc"
        assert opens == ["a", "b", "c", "b"]
        assert registry._metrics.evictions.labels("a", "1")._value.get() == 1


async def test_without_a_budget_everything_is_loaded(repository: Any, opened: Any, size: int) -> None:
    async with opened() as registry:
        assert loaded(registry) == "abc"


async def test_first_requests_share_one_load(opened: Any, size: int, opens: list[str]) -> None:
    async with opened(models_bytes=size) as registry:
        left = asyncio.create_task(ask(registry, "b"))
        others = [asyncio.create_task(ask(registry, "b")) for _ in range(5)]
        await asyncio.sleep(0.01)
        left.cancel()  # it goes on for the others
        await asyncio.gather(*others)
        assert opens == ["a", "b"]


async def test_model_in_use_is_not_sent_away(opened: Any, size: int) -> None:
    async with opened(models_bytes=size) as registry:
        with Holding():
            engine = await registry.get("a")
            waiting = asyncio.create_task(ask(registry, "b"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert isinstance(engine, TensorEngine)
            await engine.infer([ROW], "full")
        await waiting
        assert loaded(registry) == "b"


async def test_idle_model_goes_before_one_in_use(opened: Any, size: int) -> None:
    async with opened(models_bytes=2 * size) as registry:
        with Holding():
            await registry.get("a")
            await ask(registry, "b")
            await ask(registry, "c")
            assert loaded(registry) == "ac"


async def test_who_waits_for_room_waits_no_longer_than_its_time(opened: Any, size: int) -> None:
    async with opened(models_bytes=size, drain_s=0.3) as registry:
        with Holding():
            await registry.get("a")
            token = set_terms(Terms(arrived_at=time.perf_counter(), timeout_s=0.1))
            with pytest.raises(DeadlineError, match=r"still loading when 0.1 s were over"):
                await ask(registry, "b")
            reset_terms(token)
            with pytest.raises(
                UnavailableError, match=r"FATHOM_MODELS_BYTES = \d+ are held by models that are at work"
            ):
                await ask(registry, "c")
        await ask(registry, "c")
        await ask(registry, "a")


async def test_model_larger_than_the_budget_is_refused(repository: Any, opened: Any, size: int) -> None:
    async with opened(models_bytes=size - 1) as registry:
        assert loaded(registry) == ""
        for _ in range(2):
            with pytest.raises(
                UnavailableError, match=rf"takes {size} bytes and FATHOM_MODELS_BYTES is {size - 1}; raise"
            ):
                await ask(registry, "b")


async def test_newer_version_takes_over_within_the_budget(repository: Any, opened: Any, size: int) -> None:
    async with opened(models_bytes=size) as registry:
        await ask(registry, "a")
        repository.publish("a", "2")
        asking = asyncio.create_task(ask(registry, "a"))
        await registry.reload()
        await asking
        assert registry.check("a") == ("a", "2")
        await registry.unload("a")
        with pytest.raises(UnavailableError, match="not loaded"):
            await ask(registry, "a")
        await ask(registry, "c")


async def test_newest_that_is_wanted_answers_although_newer_ones_were_loaded(
    repository: Any, opened: Any, size: int
) -> None:
    repository.publish("a", "2")
    async with opened(models_bytes=4 * size) as registry:
        assert registry.check("a") == ("a", "2")
        repository.settings("a", versions=["1"])
        with Holding():
            await registry.get("a")
            await registry.reload()
            assert registry.states()["a", "2"].state == "unloading"
            assert registry.check("a") == ("a", "1")
        repository.settings("a", versions="all")
        await registry.reload()
        await registry.unload("a", "2")
        assert registry.check("a") == ("a", "1")


async def test_nobody_fails_while_more_models_than_fit_are_asked_for(opened: Any, size: int) -> None:
    async with opened(models_bytes=2 * size) as registry:
        await asyncio.gather(*(ask(registry, "abc"[place % 3]) for place in range(60)))
        for _ in range(3):
            await asyncio.gather(*(ask(registry, name) for name in "cab"))
        assert len(loaded(registry)) == 2
