"""Models by their id, from a hub of one model that runs here."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from exporters.hub import is_hub_id
from models.artifact import read_manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a directory as `org/tiny`; counts what is fetched, and cuts weights short once if told to."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.fetched, self.cuts = directory, list[str](), 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(has_body=False)

            def do_GET(self) -> None:
                self.answer(has_body=True)

            def answer(self, has_body: bool) -> None:
                content = hub.content(self.path)
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                self.send_response(404 if content is None else 206 if start else 200)
                content = (content or b"")[start:]
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                if not content and not start:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("ETag", f'"{hashlib.sha1(self.path.encode()).hexdigest()}"')
                self.end_headers()
                if has_body:
                    self.wfile.write(content[: hub.cut(self.path, len(content), start)])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def cut(self, path: str, size: int, start: int) -> int:
        self.fetched.append(f"{path.rpartition('/')[2]}@{start}")
        if self.cuts and path.endswith(".safetensors"):
            self.cuts -= 1
            return size // 2
        return size

    def content(self, path: str) -> bytes | None:
        path = path.partition("?")[0]
        if path.startswith("/api/models/org/tiny/revision/"):
            files = [{"rfilename": file.name} for file in sorted(self.directory.iterdir())]
            return json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": files}).encode()
        if path.startswith("/api/models/org/tiny/tree/"):
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(self.directory.iterdir())
            ]
            return json.dumps(entries).encode()
        file = self.directory / path.rpartition("/")[2]
        return file.read_bytes() if path.startswith("/org/tiny/resolve/") and file.is_file() else None


@pytest.fixture
def hub(lm_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    directory = Path(shutil.copytree(lm_checkpoint, tmp_path / "hub"))
    (directory / "modeling.py").write_text("raise SystemExit('code of a checkpoint ran')\n")
    made = Hub(directory)
    Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    program = [
        str(Path(sys.executable).parent / "fathom"),
        "import",
        *arguments,
        "--repository",
        str(home / "repository"),
    ]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_model_is_imported_by_its_id_at_a_commit(hub: Hub, lm_checkpoint: Path, tmp_path: Path) -> None:
    hub.cuts = 1
    result = run(hub, tmp_path, "org/tiny", "--revision", "main", "--name", "mine")
    assert result.returncode == 0, result.stderr
    assert sum(one.startswith("model.safetensors@") for one in hub.fetched) == 2  # the one cut short is not taken
    assert not any("modeling" in one for one in hub.fetched)
    manifest = read_manifest(tmp_path / "repository" / "mine" / "1")
    assert (manifest.provenance["checkpoint"], manifest.provenance["revision"]) == ("org/tiny", COMMIT)
    copied = tmp_path / "repository" / "mine" / "1" / "safetensors" / "model.safetensors"
    assert copied.read_bytes() == (lm_checkpoint / "model.safetensors").read_bytes()


def test_model_that_is_not_there_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    result = run(hub, tmp_path, "org/none", "--name", "mine")
    assert result.returncode == 1
    assert "'org/none' cannot be downloaded" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "is_id"), [("org/tiny", True), ("a/b/c", False), ("../up", False), ("file.onnx", False), ("org/", False)]
)
def test_what_can_be_an_id(text: str, is_id: bool) -> None:
    assert is_hub_id(text) is is_id
