"""A real server under pressure: it sheds load in depth, gives memory back, and ends when it is told twice."""

import json
import shutil
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

DIGIT = [[0.5] * 64]
LADDER = ["0-4,6-11", "0-3,8-11", "0-1,10-11"]
LONG = {"model": "arith", "inputs": ["4821+977="] * 16, "chain": [0, 1] * 24}


@pytest.fixture(scope="module")
def repository(shipped_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits`, and `big` with random weights of 50 MB."""
    import torch

    from exporters.export import export_checkpoint
    from models import catalogue
    from models.mixers import residual_mlp

    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(shipped_repository / "digits", folder / "digits")
    config = residual_mlp.ResidualMLPConfig(
        num_features=64, num_classes=4, hidden_size=1024, expansion=2, num_layers=3, input_shift=0.0, input_scale=1.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = residual_mlp.ResidualMLP(config)
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "big"
    catalogue.save(model, checkpoint)
    assert export_checkpoint(checkpoint, folder, formats=("onnx",)).refused == {}
    return folder


def test_memory_of_unloaded_models_comes_back_while_another_model_serves(start: Any, repository: Path) -> None:
    with start("--backend", "onnx", "--repository", str(repository)) as server, _asked(server) as answers:
        resident = []
        for _ in range(10):
            assert server.client.post("/models/big/unload").status_code == 200
            resident.append(_resident_mb(server.process.pid))
            assert server.client.post("/models/big/load").status_code == 200
            loaded = _resident_mb(server.process.pid)
            server.post("/predict", model="big", inputs=DIGIT * 8)
    # Flat: what may still be on its way back at one moment is less than a model, and nothing adds up.
    assert max(resident[2:]) - min(resident[2:]) < 40, resident
    assert statistics.median(resident[6:]) - statistics.median(resident[2:6]) < 8, resident
    assert loaded - resident[-1] > 40, (loaded, resident)
    assert len(answers) > 20
    assert set(answers) == {answers[0]}


def test_depth_gives_way_under_load_and_comes_back(start: Any) -> None:
    environment = {"FATHOM_DEGRADE": json.dumps({"arith": LADDER}), "FATHOM_DEGRADE_WAIT_S": "0.1"}
    prompts = [f"{48213 + number}+977=" for number in range(160)]
    with start("--backend", "onnx", FATHOM_MAX_BATCH_ROWS="4", **environment) as server:
        calm = server.post("/predict", model="arith", inputs=prompts[:1])
        with ThreadPoolExecutor(32) as threads:
            found = list(threads.map(lambda one: server.post("/predict", model="arith", inputs=[one]), prompts))
        lengths = Counter(len(answer["outputs"][0]["chain"]) for answer in found)
        assert all(answer.get("degraded", False) == (len(answer["outputs"][0]["chain"]) < 12) for answer in found)
        assert set(lengths) <= {12, 11, 8, 4}
        assert lengths[12] < len(found), lengths
        assert server.metric("fathom_degraded_total", model="arith") == len(found) - lengths[12]
        _wait_until(lambda: server.metric("fathom_degrade_step", model="arith") == 0)
        again = server.post("/predict", model="arith", inputs=prompts[:1])
        assert again["outputs"] == calm["outputs"]


def test_second_signal_under_load_answers_everyone_and_ends_within_seconds(start: Any) -> None:
    with start("--backend", "onnx", FATHOM_DRAIN_S="120", FATHOM_MAX_BATCH_ROWS="16") as server:
        connections = [_sent(server, LONG) for _ in range(100)]
        _wait_until(lambda: server.metric("fathom_queue_requests") > 800)
        server.process.terminate()
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.terminate()
        signalled = time.monotonic()
        statuses = Counter(connection.makefile("rb").readline()[9:12] for connection in connections)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - signalled < 5
        assert statuses.keys() <= {b"200", b"503"}
        assert statuses[b"503"] > 50
        for connection in connections:
            connection.close()


@contextmanager
def _asked(server: Any) -> Iterator[list[str]]:
    """Ask another model all the while; its answers, as text."""
    answers: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                response = client.post("/predict", json={"model": "digits", "inputs": DIGIT})
                answers.append(json.dumps(response.json().get("outputs", response.text)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def _sent(server: Any, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(head.encode() + content)
    return connection


def _wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)
