"""Repositories behind a URL, a real S3 (moto's server) and a plain web server: copies, and all that can go wrong."""

import asyncio
import errno
import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models.artifact import read_manifest
from models.errors import ArtifactError, UnavailableError
from models.signature import sign, sign_settings
from service.repository import lease
from service.repository.mirror import Mirror
from service.repository.slots import Holding

pytestmark = pytest.mark.anyio
ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, notes what was asked for, and can be told to fail."""

    asked: list[str]
    is_down = False

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.is_down:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(repository: Any) -> Iterator[tuple[str, type[Quiet]]]:
    """The repository behind a plain web server: its URL, and the handler."""
    handler = type("Handler", (Quiet,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(repository.path))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3 of this machine, with a bucket; fsspec finds it by the environment, as it finds any other."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        yield client
        client.close()
    server.stop()


def upload(s3: Any, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), "models", f"{prefix}/{path.relative_to(folder).as_posix()}")


def hashed(manifest_folder: Path) -> dict[str, str]:
    return {name: record.sha256 for name, record in read_manifest(manifest_folder).files.items()}


async def answering(registry: Any, name: str = "mine", version: str | None = None) -> str:
    with Holding():
        engine = await registry.get(name, version)
        await engine.infer([ROW], "full")
        return str(engine.manifest.version)


async def test_bucket_serves_and_is_followed(repository: Any, opened: Any, s3: Any, tmp_path: Path) -> None:
    first = repository.publish("mine", "1")
    upload(s3, first, "prod/mine/1")
    s3.put_object(Bucket="models", Key="prod/mine/settings.json", Body=json.dumps({"labels": {"stable": "1"}}))
    s3.put_object(Bucket="models", Key="prod/notes.txt", Body=b"no model")
    cache = tmp_path / "cache"
    async with opened(repository="s3://models/prod/", cache=cache, backend="onnx") as registry:
        assert await answering(registry, version="stable") == "1"
        (copy,) = cache.glob("*/mine/1")
        assert hashed(copy) == hashed(first)
        upload(s3, repository.publish("mine", "2"), "prod/mine/2")
        await registry.reload()
        assert await answering(registry) == "2"
        assert await answering(registry, version="stable") == "1"
        for one in s3.list_objects_v2(Bucket="models", Prefix="prod/mine/2/")["Contents"]:
            s3.delete_object(Bucket="models", Key=one["Key"])
        await registry.reload()
        assert await answering(registry) == "1"
        assert list(registry.states()) == [("mine", "1")] or registry.states()["mine", "2"].state == "unloading"


async def test_web_server_serves_and_only_what_changed_is_fetched(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    url, handler = web
    repository.publish("mine", "1")
    repository.publish("mine", "2")
    async with opened(repository=url, cache=tmp_path / "cache") as registry:
        assert await answering(registry) == "2"
        assert not [path for path in handler.asked if path.startswith("/mine/1/") and path.endswith(".onnx")]
        handler.asked.clear()
        await registry.reload()
        repository.publish("mine", "3", provenance={"note": "the same files"})
        await registry.reload()
        assert await answering(registry) == "3"
    fetched = [path for path in handler.asked if path.endswith(".onnx")]
    assert {path.split("/")[2] for path in fetched} == {"3"}
    handler.asked.clear()
    async with opened(repository=url, cache=tmp_path / "cache") as registry:  # another process, the same cache
        assert await answering(registry) == "3"
    assert [path for path in handler.asked if path.endswith(".onnx")] == []


async def test_copies_serve_while_the_place_cannot_be_reached(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    url, handler = web
    repository.publish("mine", "1")
    repository.settings("mine", labels={"stable": "1"})
    async with opened(repository=url, cache=tmp_path / "cache") as registry:
        handler.is_down = True
        with pytest.raises(ArtifactError, match="cannot be read"):
            await registry.reload()
        assert await answering(registry) == "1"
    async with opened(repository=url, cache=tmp_path / "cache") as registry:  # started without it
        assert await answering(registry, version="stable") == "1"
        handler.is_down = False
        repository.publish("mine", "2")
        await registry.reload()
        assert await answering(registry) == "2"


def _flip(directory: Path) -> None:
    path = directory / "onnx" / "head.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _edit(directory: Path, **members: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def _leave(name: str) -> Callable[[Path], None]:
    return lambda directory: _edit(directory, files={name: {"sha256": "0" * 64, "size_bytes": 0}}, forms={})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip, "head.onnx is not the exported file"),
        (
            lambda directory: (directory / "onnx" / "head.onnx").unlink(),
            "head.onnx cannot be read: FileNotFoundError",
        ),
        (lambda directory: _edit(directory, surprise=1), "not a valid manifest: surprise"),
        (_leave("../../../escaped"), "names '../../../escaped', which lies outside"),
        (_leave("/tmp/escaped"), "names '/tmp/escaped', which lies outside"),
        (_leave("..\\\\escaped"), "which lies outside"),
    ],
)
async def test_what_is_not_right_is_never_visible(
    damage: Callable[[Path], object], words: str, repository: Any, opened: Any, web: tuple[str, Any], tmp_path: Path
) -> None:
    repository.publish("mine", "1")
    cache = tmp_path / "cache"
    async with opened(repository=web[0], cache=cache) as registry:
        damage(repository.publish("mine", "2"))
        await registry.reload()
        assert await answering(registry) == "1"
        with pytest.raises(UnavailableError, match=words):
            await answering(registry, version="2")
        assert sorted(path.name for path in cache.glob("*/mine/*")) == ["1"]
        assert not list(cache.glob("*/.fetch-*"))
        assert not list(tmp_path.rglob("escaped"))
        repository.publish("mine", "2")
        await registry.reload()
        assert await answering(registry) == "2"


async def test_copy_that_was_changed_is_fetched_again(
    repository: Any, opened: Any, web: tuple[str, Any], tmp_path: Path
) -> None:
    repository.publish("mine", "1")
    async with opened(repository=web[0], cache=tmp_path / "cache"):
        (copy,) = (tmp_path / "cache").glob("*/mine/1")
    _flip(copy)
    async with opened(repository=web[0], cache=tmp_path / "cache") as registry:
        assert await answering(registry) == "1"


def test_empty_or_wrong_places_are_refused(tmp_path: Path, web: tuple[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="has no versions"):
        Mirror(web[0], tmp_path).refresh()
    with pytest.raises(ArtifactError, match="cannot be read"):
        Mirror(f"{web[0]}/nowhere", tmp_path).refresh()
    with pytest.raises(ArtifactError, match="nonsense"):
        Mirror("nonsense://bucket", tmp_path)


def test_password_of_a_url_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        Mirror("http://ada:secret@127.0.0.1:9/models", tmp_path).refresh()
    assert "secret" not in str(caught.value)


def test_leftovers_of_a_download_that_was_cut_off_go(repository: Any, web: tuple[str, Any], tmp_path: Path) -> None:
    repository.publish("mine", "1")
    for name, age_s in ((".fetch-old", 3 * 86400.0), (".fetch-new", 0.0)):
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (then, then))
    Mirror(web[0], tmp_path).refresh()
    assert [path.name for path in tmp_path.glob(".fetch-*")] == [".fetch-new"]
    shutil.rmtree(tmp_path / ".fetch-new")


async def test_models_without_room_are_not_fetched(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        directory = repository.publish(name, "1")
    size = sum(record.size_bytes for record in read_manifest(directory).files.values())
    async with opened(repository=web[0], cache=tmp_path / "cache", models_bytes=size) as registry:
        assert sorted(path.name for path in tmp_path.glob("cache/*/*")) == ["a"]
        assert await answering(registry, "b") == "1"
        assert sorted(path.name for path in tmp_path.glob("cache/*/*")) == ["a", "b"]


def _copies(folder: Path) -> list[str]:
    """The versions of `mine` in the cache."""
    return sorted(path.parent.name for path in folder.glob("*/mine/*/manifest.json"))


async def _settled(registry: Any) -> None:
    """A reload, and another once what it let go is freed."""
    await registry.reload()
    while registry._shelf._leaving:
        await asyncio.sleep(0.005)
    await registry.reload()


async def test_copies_of_what_is_gone_go_once_nobody_uses_them(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for version in ("1", "2"):
        repository.publish("mine", version)
    repository.settings("mine", versions="all")
    async with opened(repository=web[0], cache=cache, backend="onnx", prepack=False) as registry:
        with Holding():
            engine = await registry.get("mine", "1")  # somebody's request is under way
            repository.remove("mine", "1")
            await registry.reload()
            await registry.reload()
            assert registry._shelf._leaving
            assert _copies(cache) == ["1", "2"]
            await engine.infer([ROW], "full")
        await _settled(registry)
        assert _copies(cache) == ["2"]
        assert not list(cache.glob("*/.fetch-*"))
        repository.publish("mine", "1")
        await registry.reload()  # it came back
        assert _copies(cache) == ["1", "2"]
        assert await answering(registry, version="1") == "1"
        web[1].is_down = True
        repository.remove("mine", "1")
        with pytest.raises(ArtifactError):
            await registry.reload()
        assert _copies(cache) == ["1", "2"]  # who cannot look removes nothing
    async with opened(repository=web[0], cache=cache) as registry:
        assert await answering(registry, version="1") == "1"
    web[1].is_down = False
    async with opened(repository=web[0], cache=cache) as registry:  # a start looks, too
        assert _copies(cache) == ["2"]
        assert await answering(registry) == "2"


async def test_versions_that_the_place_has_stay_though_nobody_loads_them(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    repository.publish("mine", "1")
    async with opened(repository=web[0], cache=tmp_path / "cache") as registry:
        repository.publish("mine", "2")
        await _settled(registry)
        assert list(registry._catalog.entries) == [("mine", "2")]
        assert _copies(tmp_path / "cache") == ["1", "2"]


async def test_servers_that_share_a_cache_leave_each_other_what_they_use(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for version in ("1", "2"):
        repository.publish("mine", version)
    repository.settings("mine", versions="all")
    async with (
        opened(repository=web[0], cache=cache, backend="onnx", prepack=False) as one,
        opened(repository=web[0], cache=cache, backend="onnx", prepack=False) as other,
    ):
        repository.remove("mine", "1")
        await _settled(one)
        assert ("mine", "1") not in one.states()
        assert _copies(cache) == ["1", "2"]
        assert await answering(other, version="1") == "1"
        await _settled(other)
        assert _copies(cache) == ["2"]
        assert [await answering(registry) for registry in (one, other)] == ["2", "2"]


async def test_copy_that_another_server_removes_at_the_wrong_moment_is_fetched_again(
    repository: Any, web: tuple[str, type[Quiet]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish("mine", "1")
    early, late = Mirror(web[0], tmp_path), Mirror(web[0], tmp_path)
    early.refresh()
    repository.publish("mine", "2")  # which the first has not seen
    late.refresh()
    use, pruned = lease.use, []

    def prune_first(directory: Path) -> Any:
        if not pruned:
            pruned.append(directory)
            early.prune()
            assert not directory.exists()
        return use(directory)

    monkeypatch.setattr(lease, "use", prune_first)
    with late.fetch("mine", "2") as held:
        assert pruned == [held.directory]
        early.prune()
        assert hashed(held.directory) == hashed(repository.path / "mine" / "2")
    early.prune()
    assert not held.directory.exists()


def test_copy_that_two_servers_want_at_once_is_fetched_once(
    repository: Any, web: tuple[str, type[Quiet]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish("mine", "1")
    both, fill = threading.Barrier(2), Mirror._fill

    def slowly(self: Mirror, *arguments: Any) -> None:
        threading.Event().wait(0.2)
        fill(self, *arguments)

    monkeypatch.setattr(Mirror, "_fill", slowly)

    def fetch(_: int) -> tuple[int, Any]:
        mirror = Mirror(web[0], tmp_path)
        mirror.refresh()
        both.wait()
        held = mirror.fetch("mine", "1")
        return held.directory.stat().st_ino, held

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(fetch, range(2)))
    assert {inode for inode, _ in found} == {(tmp_path / "mine" / "1").stat().st_ino}
    assert web[1].asked.count("/mine/1/onnx/head.onnx") == 1
    for _, held in found:
        held.let_go()


def test_process_that_dies_holds_nothing(tmp_path: Path) -> None:
    program = (
        f"from service.repository import lease; from pathlib import Path; held = lease.use(Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}; print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert lease.seize(tmp_path) is None
        process.kill()
        process.wait()
    assert lease.seize(tmp_path) is not None


def test_nothing_is_removed_where_folders_cannot_be_locked(
    repository: Any, web: tuple[str, type[Quiet]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    repository.publish("mine", "1")
    monkeypatch.setattr(fcntl, "flock", refuse)
    mirror = Mirror(web[0], tmp_path)
    mirror.refresh()
    mirror.fetch("mine", "1").let_go()
    repository.publish("mine", "2")
    repository.remove("mine", "1")
    mirror.refresh()
    mirror.prune()
    assert (tmp_path / "mine" / "1" / "manifest.json").is_file()


def new_keys(folder: Path) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "key.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


async def test_only_signed_versions_are_fetched(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    private, public = new_keys(tmp_path)
    sign(repository.publish("mine", "1"), private)
    repository.publish("mine", "2")
    async with opened(repository=web[0], cache=tmp_path / "cache", repository_key=public) as registry:
        with pytest.raises(ArtifactError, match=r"http://.*/mine/2 has no signature manifest.sig"):
            await registry.load("mine")
        await registry.load("mine", "1")
        assert await answering(registry) == "1"
        assert [path.name for path in tmp_path.glob("cache/*/mine/*")] == ["1"]


async def _follows_signed_settings_alone(
    repository: Any, registry: Any, private: Path, reload: Callable[[], Any], put: Callable[[str], object]
) -> None:
    """Settings are changed without a signature, by somebody else's file, and rightly; `put` publishes a file."""

    def told(**members: Any) -> None:
        repository.settings("mine", **members)
        put("mine/settings.json")

    assert await answering(registry) == "1"
    told(versions=["2"])  # as whoever can write there and has no key
    await reload()
    assert await answering(registry) == "1"
    assert "mine/settings.sig is not that of mine/settings.json" in registry.states()["mine", "1"].reason
    (repository.path / "other").mkdir()
    (repository.path / "other" / "settings.json").write_text('{"versions": ["2"]}')
    shutil.copy(sign_settings(repository.path / "other", private), repository.path / "mine" / "settings.sig")
    put("mine/settings.sig")  # what was signed for another model
    await reload()
    assert await answering(registry) == "1"
    sign_settings(repository.path / "mine", private)
    put("mine/settings.sig")
    await reload()
    assert await answering(registry) == "2"
    assert {entry.reason for entry in registry.states().values()} == {""}


def _signed_to_begin_with(repository: Any, private: Path) -> None:
    for version in ("1", "2"):
        sign(repository.publish("mine", version), private)
    repository.settings("mine", versions=["1"])
    sign_settings(repository.path / "mine", private)


@pytest.mark.parametrize("is_remote", [False, True], ids=["folder", "web"])
async def test_settings_need_a_signature_where_there_is_a_key(
    is_remote: bool, repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    private, public = new_keys(tmp_path)
    _signed_to_begin_with(repository, private)
    place = {"repository": web[0], "cache": tmp_path / "cache"} if is_remote else {}
    async with opened(**place, repository_key=public) as registry:
        await _follows_signed_settings_alone(repository, registry, private, registry.reload, lambda path: None)
        (repository.path / "mine" / "settings.sig").unlink()
        await registry.reload()
        assert await answering(registry) == "2"
        assert "has no signature settings.sig" in registry.states()["mine", "2"].reason
    async with opened(**place, repository_key=public) as registry:  # nothing that could be used, now or before
        assert registry.states()["mine", "2"].state == "failed"
        with pytest.raises(UnavailableError, match=r"fathom sign mine/settings.json --key"):
            await answering(registry)
    async with opened(**place) as registry:  # without a key nobody asks
        assert await answering(registry) == "2"


async def test_settings_of_a_bucket_need_a_signature(repository: Any, opened: Any, s3: Any, tmp_path: Path) -> None:
    def put(path: str) -> None:
        s3.upload_file(str(repository.path / path), "models", f"signed/{path}")

    private, public = new_keys(tmp_path)
    _signed_to_begin_with(repository, private)
    upload(s3, repository.path, "signed")
    async with opened(repository="s3://models/signed", cache=tmp_path / "cache", repository_key=public) as registry:
        await _follows_signed_settings_alone(repository, registry, private, registry.reload, put)


async def test_copied_settings_are_not_believed_without_their_signature(
    repository: Any, opened: Any, web: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    private, public = new_keys(tmp_path)
    _signed_to_begin_with(repository, private)
    place: dict[str, Any] = {"repository": web[0], "cache": tmp_path / "cache", "repository_key": public}
    async with opened(**place) as registry:
        assert await answering(registry) == "1"
    web[1].is_down = True
    async with opened(**place) as registry:
        assert await answering(registry) == "1"
    (kept,) = tmp_path.glob("cache/*/mine/settings.json")
    kept.write_text('{"versions": ["2"]}')
    async with opened(**place) as registry:
        with pytest.raises(UnavailableError, match=r"mine/settings\.sig is not that of"):
            await answering(registry)
