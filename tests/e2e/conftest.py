"""Real server processes on a repository made from the shipped checkpoints, exported once per run."""

import fcntl
import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

SHIPPED = ("arith", "digits")
FATHOM = Path(sysconfig.get_path("scripts")) / "fathom"


@dataclass(frozen=True)
class Process:
    """A `fathom serve` that is ready, and a client that talks to it."""

    process: subprocess.Popen[bytes]
    url: str
    client: httpx.Client
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def grpc_address(self) -> str:
        """Of a server that was started with a port for gRPC."""
        return str(_logged(self.log, "grpc_address"))

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request that must succeed."""
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture(scope="session")
def shipped_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped models in every format. To be read, not changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    repository = shared / "shipped"
    with (shared / "shipped.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers the first exports, the others wait
        missing = [name for name in SHIPPED if not (repository / name).exists()]
        options = ("--formats", "onnx,torchscript,safetensors", "--repository", repository)
        exports = [
            subprocess.Popen((FATHOM, "export", name, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for name in missing
        ]
        assert [export.wait() for export in exports] == [0] * len(missing)
    return repository


@pytest.fixture(scope="session")
def start(shipped_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start `fathom serve` on a free port; stopped and checked for exit code 0 at the end, unless stopped before."""

    @contextmanager
    def run(*arguments: str, **environment: str) -> Iterator[Process]:
        log = tmp_path_factory.mktemp("server") / "log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FATHOM_")}
        command = (FATHOM, "serve", "--repository", shipped_repository, "--host", "127.0.0.1", "--port", "0")
        with log.open("wb") as written:
            process = subprocess.Popen((*command, *arguments), env={**clean, **environment}, stderr=written)
        try:
            url = "http://" + _wait_for(lambda: _logged(log, "address"), process, log)
            with httpx.Client(base_url=url, timeout=120) as client:
                _wait_for(lambda: client.get("/health/ready").status_code == 200, process, log)
                yield Process(process, url, client, log)
            was_stopped = process.poll() is not None
            process.terminate()
            assert process.wait(timeout=60) == 0 or was_stopped, log.read_text()
        finally:
            process.kill()
            process.wait()

    return run


@pytest.fixture(scope="session")
def server(start: Start) -> Iterator[Process]:
    """The server most tests share, on ONNX Runtime."""
    with start("--backend", "onnx", "--grpc-port", "0") as process:
        yield process


def _logged(log: Path, field: str) -> str | None:
    lines = (json.loads(line) for line in log.read_text().splitlines() if f'"{field}"' in line)
    return next((str(line[field]) for line in lines), None)


def _wait_for(value: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    ends = time.monotonic() + 120
    while not (found := value()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.02)
    return found
