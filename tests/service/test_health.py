"""Health is answered by the event loop alone: neither a busy device nor a model on its way holds it up."""

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from service.backends import open as opening

PATHS = ("/health/live", "/health/ready", "/v2/health/live", "/metrics")
ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


def _median_s(server: Any, num_rounds: int = 15) -> float:
    """Median over requests: another process may hold one of them up."""
    seconds = []
    for _ in range(num_rounds):
        for path in PATHS:
            started = time.perf_counter()
            assert server.client.get(path).status_code in (200, 503)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def test_health_does_not_wait_for_a_busy_device(serve: Any, pace: Any) -> None:
    with serve() as server:
        pace.seconds, pace.num_passes = 2.0, 0
        bodies = ({"model": "tinymlp", "inputs": [ROW]}, {"model": "tinylm", "inputs": ["1+1="]})
        asking = [threading.Thread(target=server.post, args=("/predict",), kwargs=body) for body in bodies]
        for thread in asking:
            thread.start()
        while pace.num_passes < 2:
            time.sleep(0.01)
        assert _median_s(server) < 0.05
        pace.seconds = 0.0
        for thread in asking:
            thread.join()


def test_health_does_not_wait_for_a_model_that_loads(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, plain = threading.Event(), opening._open_parts

    def slowly(manifest: Any, directory: Path, *arguments: Any) -> Any:
        assert loading.wait(20)
        return plain(manifest, directory, *arguments)

    monkeypatch.setattr(opening, "_open_parts", slowly)
    with serve(wait=False) as server:
        assert _median_s(server) < 0.05
        assert server.client.get("/health/live").status_code == 200
        assert server.client.get("/health/ready").status_code == 503
        loading.set()
        while server.client.get("/health/ready").status_code != 200:
            time.sleep(0.01)
