"""A served repository: the real app behind a real socket, in a thread of the test's own process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.backends import fake
from service.server import Server, listen
from service.settings import Settings


@dataclass(frozen=True)
class Served:
    """One server, and a client that talks to it."""

    app: FastAPI
    client: httpx.Client
    address: tuple[str, int]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def predict(self, model: str, inputs: Any, **fields: Any) -> Any:
        """The answer to a prediction that must succeed."""
        response = self.post("/predict", model=model, inputs=inputs, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; the metric must exist."""
        families = list(text_string_to_metric_families(self.client.get("/metrics").text))
        assert any(name.startswith(family.name) for family in families), name
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


Serve = Callable[..., AbstractContextManager[Served]]


@contextmanager
def _served(settings: Settings, wait: bool) -> Iterator[Served]:
    app = create_app(settings)
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)
    server = Server(config, app.state.lifecycle)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url="http://{}:{}".format(*address), timeout=60) as client:
            served = Served(app, client, address)
            while wait and client.get("/health/ready").status_code != 200:
                threading.Event().wait(0.01)
            yield served
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serve(tiny_repository: Path) -> Serve:
    """Serve a repository, the tiny one by default, with the given settings; ready unless `wait` is false."""

    def start(wait: bool = True, **settings: Any) -> AbstractContextManager[Served]:
        return _served(Settings(**{"repository": tiny_repository, "backend": "fake", **settings}), wait)

    return start


@pytest.fixture(scope="session")
def ranks_server(serve: Serve) -> Iterator[Served]:
    """A server whose language model is shared by two ranks, which a busy machine does not lose."""
    with serve(backend="eager", tensor_parallel=2, rank_silence_s=30.0) as served:
        yield served


@pytest.fixture(scope="module", params=["fake", "onnx", "ranks"])
def server(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Served]:
    """A server of the tiny models: on arithmetic, on real weights, and on ranks that share them."""
    if request.param == "ranks":
        yield request.getfixturevalue("ranks_server")
        return
    with serve(backend=request.param) as served:
        yield served


# What is said in each dialect is said on ranks, too; what is refused never reaches them.
ON_RANKS = ("test_predict", "test_openai", "test_v2", "test_cola", "test_embeddings")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what says nothing about ranks."""
    items[:] = [item for item in items if not _is_idle(item)]


def _is_idle(item: pytest.Item) -> bool:
    """Whether a test would run on ranks that it does not ask anything."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("server") == "ranks" and item.path.stem not in ON_RANKS


@pytest.fixture
def problem() -> Callable[..., dict[str, Any]]:
    """Check that a response is a problem document of that status which says all of `words`."""

    def check(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = response.json()
        assert document["status"] == status
        assert document["type"].startswith("/problems/")
        assert document["title"]
        assert document["instance"] == f"urn:request:{response.headers['x-request-id']}"
        for word in words:
            assert word in document["detail"]
        return document

    return check


@dataclass
class Pace:
    """How long each pass of a fake model takes, whether it fails, and how many there were."""

    seconds: float = 0.0
    fault: str = ""
    num_passes: int = 0


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Slows the fake models that are opened from now on; a pass gives the interpreter to others, like a real one."""
    kept, plain = Pace(), fake._head

    def slow(*arguments: Any) -> Any:
        kept.num_passes += 1
        threading.Event().wait(kept.seconds)
        if kept.fault:
            raise RuntimeError(kept.fault)
        return plain(*arguments)

    monkeypatch.setattr(fake, "_head", slow)
    return kept
