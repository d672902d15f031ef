"""Following the changes of a repository: what comes, what goes, and what stays because nothing better is there."""

import asyncio
import json
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from models.errors import ArtifactError, UnavailableError, UnknownModelError
from service.bound import bind
from service.engine.tensor import TensorEngine
from service.registry import Registry
from service.repository import loader
from service.repository.slots import Holding

pytestmark = pytest.mark.anyio
ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


def states(registry: Registry) -> dict[str, str]:
    return {"/".join(key): entry.state for key, entry in registry.states().items()}


def reason(registry: Registry, name: str, version: str) -> str:
    return registry.states()[name, version].reason


async def answering(registry: Registry, name: str = "mine", version: str | None = None) -> str:
    """The version that answers a request, which it really does."""
    with Holding():
        engine = await registry.get(name, version)
        assert isinstance(engine, TensorEngine)
        await engine.infer([ROW], "full")
        return engine.manifest.version


async def settled(registry: Registry) -> Registry:
    """What leaves has left."""
    async with asyncio.timeout(10):
        while "unloading" in states(registry).values():
            await asyncio.sleep(0.005)
    return registry


async def test_new_version_takes_over_and_the_old_one_goes(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    async with opened() as registry:
        assert await answering(registry) == "1"
        repository.publish("mine", "2")
        repository.publish("other", "1")
        assert await answering(registry) == "1"
        await registry.reload()
        assert await answering(registry) == "2"
        assert await answering(registry, "other") == "1"
        assert states(await settled(registry)) == {"mine/1": "available", "mine/2": "ready", "other/1": "ready"}
        repository.remove("mine", "2")
        await registry.reload()
        assert await answering(registry) == "1"
        repository.remove("other")
        await registry.reload()
        assert states(await settled(registry)) == {"mine/1": "ready"}
        with pytest.raises(UnknownModelError):
            await answering(registry, "other")


def break_it(directory: Path) -> None:
    (directory / "onnx" / "head.onnx").write_bytes(b"no graph")


async def test_version_that_fails_leaves_the_old_one_serving_until_its_files_change(
    repository: Any, opened: Any, tiny_repository: Path
) -> None:
    repository.publish("mine", "1")
    async with opened() as registry:
        broken = repository.publish("mine", "2")
        break_it(broken)
        failures = registry._metrics.load_failures.labels("mine", "2")
        for _ in range(3):
            await registry.reload()
            assert await answering(registry) == "1"
        assert failures._value.get() == 1  # not tried again as it was
        assert states(registry) == {"mine/1": "ready", "mine/2": "failed"}
        assert "head.onnx" in reason(registry, "mine", "2")
        with pytest.raises(UnavailableError, match=r"is failed: .*head.onnx"):
            await answering(registry, version="2")
        with pytest.raises(ArtifactError, match=r"head.onnx"):
            await registry.load("mine")
        await registry.reload(is_retry=True)
        assert failures._value.get() == 3
        shutil.copy(tiny_repository / "tinymlp" / "1" / "onnx" / "head.onnx", broken / "onnx")
        await registry.reload()
        assert await answering(registry) == "2"
        assert states(await settled(registry)) == {"mine/1": "available", "mine/2": "ready"}


async def test_version_that_changes_while_it_loads_is_not_half_loaded(
    repository: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loader.open_version

    def slowly(directory: Path, *arguments: Any) -> Any:
        found = plain(directory, *arguments)
        (directory / "late").touch()
        return found

    repository.publish("mine", "1")
    async with opened() as registry:
        repository.publish("mine", "2")
        monkeypatch.setattr(loader, "open_version", slowly)
        await registry.reload()
        assert await answering(registry) == "1"
        assert "mine/2 changed while it was loaded" in reason(registry, "mine", "2")
        monkeypatch.setattr(loader, "open_version", plain)
        await registry.reload()
        assert await answering(registry) == "2"


async def test_same_version_with_other_files_replaces_itself(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    async with opened() as registry:
        with Holding():
            before = await registry.get("mine")
            repository.publish("mine", "1", provenance={"note": "again"})
            await registry.reload()
            after = await registry.get("mine")
            assert after is not before
            assert after.manifest.provenance == {"note": "again"}
            assert isinstance(before, TensorEngine)
            await before.infer([ROW], "full")  # for who had it already
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError):
            await before.infer([ROW], "full")
        assert b'fathom_kv_pages_used{model="mine",version="1"} 0.0' in registry._metrics.exposition()
        break_it(repository.publish("mine", "1"))
        await registry.reload()
        assert await answering(registry) == "1"
        assert registry.states()["mine", "1"].state == "ready"
        assert "head.onnx" in reason(registry, "mine", "1")


async def test_settings_that_cannot_be_used_fail_their_model_alone(repository: Any, opened: Any) -> None:
    for name in ("mine", "other"):
        repository.publish(name, "1")
    repository.settings("mine", versions=["1", "5"])
    async with opened() as registry:
        assert await answering(registry, "other") == "1"
        assert states(registry) == {"mine/1": "failed", "other/1": "ready"}
        assert "mine/settings.json: versions: there is no version '5'" in reason(registry, "mine", "1")
        repository.settings("mine", versions=["1"])
        await registry.reload()
        assert await answering(registry) == "1"
        (repository.path / "mine" / "settings.json").write_text("{")
        repository.publish("mine", "2")
        await registry.reload()  # the settings before stay in force: version 1, and no other
        assert await answering(registry) == "1"
        assert states(registry) == {"mine/1": "ready", "mine/2": "available", "other/1": "ready"}
        assert "no JSON document" in reason(registry, "mine", "1")
        with pytest.raises(ArtifactError, match="no JSON document"):
            await registry.load("mine")
        (repository.path / "mine" / "settings.json").unlink()
        await registry.reload()
        assert await answering(registry) == "2"
        assert reason(registry, "mine", "2") == ""


async def test_labels_and_split_say_who_answers(repository: Any, opened: Any) -> None:
    for version in ("3", "4"):
        repository.publish("mine", version)
    repository.settings("mine", labels={"stable": "3", "canary": "4"}, split={"stable": 90, "canary": 10})
    async with opened() as registry:
        assert await answering(registry, version="stable") == "3"
        assert await answering(registry, "mine@canary") == "4"
        assert await answering(registry, "mine@4") == "4"
        answered = Counter([await answering(registry) for _ in range(50)])
        assert answered == {"3": 45, "4": 5}
        for _ in range(7):
            assert registry.check("mine") == ("mine", "3")
        with pytest.raises(UnknownModelError, match=r"label 'beta'.*mine/3.*'stable': '3'"):
            await answering(registry, version="beta")
        await registry.unload("mine", "canary")  # its share goes to those that are there
        assert {await answering(registry) for _ in range(30)} == {"3"}
        with pytest.raises(UnavailableError, match="version '4' is not loaded"):
            await answering(registry, version="canary")
        repository.settings("mine", labels={"stable": "4"})
        await registry.load("mine", "4")
        await registry.reload()
        assert await answering(registry, version="stable") == "4"
        assert await answering(registry) == "4"
        with pytest.raises(UnknownModelError, match=r"label 'canary'"):
            await answering(registry, version="canary")


async def test_settings_wait_for_the_versions_they_send_requests_to(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    repository.settings("mine", labels={"stable": "1"})
    async with opened() as registry:
        break_it(repository.publish("mine", "2"))
        repository.settings("mine", labels={"stable": "2"})
        for _ in range(2):
            await registry.reload()
            assert await answering(registry, version="stable") == "1"
            assert "labels.stable: version '2' does not serve" in reason(registry, "mine", "1")
        repository.publish("mine", "2")
        await registry.reload()
        assert await answering(registry, version="stable") == "2"


async def test_changed_limits_take_hold(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    async with opened() as registry:
        repository.settings("mine", limits={"max_batch_rows": 3, "response_cache_bytes": 4096})
        await registry.reload()
        limits = (await registry.get("mine")).limits
        assert (limits.batch.max_rows, limits.response_cache_bytes) == (3, 4096)
        repository.settings("mine", limits={"max_batch_rows": 3, "response_cache_bytes": 4096}, labels={"a": "1"})
        before = await registry.get("mine")
        await registry.reload()
        assert await registry.get("mine") is before  # nothing that it was opened with
        repository.settings("mine", backend="torchscript", limits={"kv_bytes": 1})
        await registry.reload()
        assert await registry.get("mine") is before
        assert "limits: kv_bytes" in reason(registry, "mine", "1")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"inputs": [[1, 2]]}, "fails warm_up.1 of its settings.json"),
        ({"inputs": [ROW], "chain": "0-9"}, "visit 3 names layer 3"),
        ({"inputs": [ROW], "chain": "memory"}, "'memory' is not known"),
        ({"inputs": [ROW], "version": "1"}, r"\['version'\] came"),
        ({"rows": [ROW]}, "inputs: Field required"),
    ],
)
async def test_version_serves_only_after_its_warm_up(
    request_: dict[str, Any], words: str, repository: Any, opened: Any
) -> None:
    repository.publish("mine", "1")
    repository.settings("mine", warm_up=[{"inputs": [ROW], "chain": "0-2"}, {"inputs": [ROW] * 3, "depth": 0.5}])
    async with opened() as registry:
        assert await answering(registry) == "1"
        before = await registry.get("mine")
        repository.settings("mine", warm_up=[{"inputs": [ROW]}, request_])
        await registry.reload()
        with pytest.raises(ArtifactError, match=words):
            await registry.load("mine")
        assert await registry.get("mine") is before
        assert b'fathom_queue_rows{model="mine",version="1"} 0.0' in registry._metrics.exposition()  # still watched


async def test_what_a_person_asked_for_stays(repository: Any, opened: Any) -> None:
    for version in ("1", "2", "3"):
        repository.publish("mine", version)
    async with opened() as registry:
        await registry.load("mine", "1")
        await registry.unload("mine", "3")
        for _ in range(2):
            await registry.reload(is_retry=True)
            assert states(registry) == {"mine/1": "ready", "mine/2": "available", "mine/3": "available"}
        assert await answering(registry) == "1"
        repository.publish("mine", "4")
        await registry.reload()
        assert await answering(registry) == "4"
        await registry.unload("mine")
        await registry.reload()
        assert set(states(registry).values()) == {"available"}
        assert (await registry.load("mine")).manifest.version == "4"


async def test_unloaded_model_frees_its_memory(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    async with opened(backend="onnx") as registry:
        await answering(registry)
        engine = weakref.ref(await registry.get("mine"))
        await registry.unload("mine")
        assert engine() is None


async def test_repository_that_cannot_be_read_changes_nothing(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    repository.publish("other", "1")
    async with opened() as registry:
        gone = repository.path.rename(repository.path.with_name("gone"))
        with pytest.raises(ArtifactError, match="cannot be read"):
            await registry.reload()
        assert await answering(registry) == "1"
        gone.rename(repository.path)
        shutil.rmtree(repository.path / "mine")
        (repository.path / "mine").symlink_to("mine")  # nobody can look into it
        await registry.reload()
        assert await answering(registry) == "1"
        assert "its folder cannot be read" in reason(registry, "mine", "1")


async def test_links_out_of_the_repository_are_refused(repository: Any, opened: Any, tmp_path: Path) -> None:
    repository.publish("mine", "1")
    outside = repository.publish("outside", "2").rename(tmp_path / "2")
    repository.remove("outside")
    (repository.path / "mine" / "2").symlink_to(outside)
    async with opened() as registry:
        assert "leads out of the repository" in reason(registry, "mine", "2")
        secret = tmp_path / "secret"
        secret.write_text(json.dumps({"versions": "all"}))
        (repository.path / "mine" / "settings.json").symlink_to(secret)
        (repository.path / "mine" / "2").unlink()
        await registry.reload()
        assert "leads out of the repository" in reason(registry, "mine", "1")


async def test_no_request_fails_while_versions_come_and_go(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    answered: Counter[str] = Counter()
    async with opened() as registry:

        async def ask() -> None:
            while not is_over:
                with Holding():
                    engine = await registry.get("mine")
                    await asyncio.sleep(0.002)  # whatever a route does before it runs something
                    assert isinstance(engine, TensorEngine)
                    await engine.infer([ROW], "full")
                    await asyncio.sleep(0.002)
                    await engine.infer([ROW] * 2, "0,0")
                    answered[engine.manifest.version] += 1

        is_over = False
        asking = [asyncio.create_task(ask()) for _ in range(8)]
        for version in range(2, 8):
            repository.publish("mine", str(version))
            if version % 2:
                repository.settings("mine", limits={"max_batch_rows": version})
            await registry.reload()
            repository.remove("mine", str(version - 1))
            await asyncio.sleep(0.03)
        await registry.reload()
        is_over = True
        await asyncio.gather(*asking)
        assert answered.keys() == {str(version) for version in range(1, 8)}
        assert states(await settled(registry)) == {"mine/7": "ready"}


async def test_everything_at_once_ends_in_order(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    repository.publish("mine", "2")
    async with opened() as registry:
        deeds = [
            deed
            for _ in range(4)
            for deed in (
                registry.reload(),
                registry.unload("mine"),
                registry.load("mine", "1"),
                registry.reload(is_retry=True),
                registry.load("mine"),
                registry.unload("mine", "2"),
            )
        ]
        done = await asyncio.gather(*deeds, return_exceptions=True)
        assert [one for one in done if isinstance(one, Exception) and not isinstance(one, UnavailableError)] == []
        await registry.load("mine")
        assert await answering(registry) == "2"
        await registry.unload("mine")
        assert set(states(registry).values()) == {"available"}


async def test_models_of_this_process_are_left_alone(repository: Any, opened: Any) -> None:
    repository.publish("mine", "1")
    for settings in ({}, {"models_bytes": 1 << 30}):
        async with opened(**settings) as registry:
            engine = registry.add("double", bind(lambda x: 2 * x, {"x": ("FP32", [-1, 3])}))
            for _ in range(2):
                await registry.reload(is_retry=True)
            assert await registry.get("double") is engine
            assert states(registry) == {"mine/1": "ready", "double/1": "ready"}
            await registry.unload("double")
            assert states(registry) == {"mine/1": "ready"}
