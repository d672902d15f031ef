"""`serve` from Python: functions and modules behind every dialect, and what their faults do to others."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.errors import InputError
from service import bind, serve
from service.running import Running
from service.server import AddressError
from service.settings import SettingsError

ROOT = Path(__file__).parents[2]
X = {"x": ("FP32", [-1, 3])}
SCRIPT = """
from service import serve
def double(x):
    return x * 2
serve(double, inputs={"x": ("FP32", [-1, 3])}, port=0, block=%s)
"""


class Models:
    """Functions to be served, and what they saw."""

    def __init__(self) -> None:
        self.num_rows: list[int] = []
        self.threads: set[str] = set()
        self.may_go = threading.Event()
        self.may_go.set()

    def double(self, x: Any) -> Any:
        self.num_rows.append(len(x))
        self.threads.add(threading.current_thread().name)
        asyncio.run(asyncio.sleep(0))  # impossible where an event loop runs already
        assert self.may_go.wait(20)
        return x * 2

    @staticmethod
    def picky(x: Any) -> Any:
        if (x < 0).any():
            raise ValueError("negative")
        if (x > 9).any():
            raise InputError("x is above 9; send smaller ones")
        if (x == 7).any():
            sys.exit(7)
        return x.sum(axis=1)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture(scope="module")
def running(models: Models) -> Iterator[Running]:
    bound = {"double": bind(models.double, X), "picky": bind(models.picky, X)}
    with serve(bound, block=False, port=0) as server:
        yield server


def ask(server: Running, model: str, rows: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", json={"model": model, "inputs": rows}, timeout=30)


def waiting(server: Running, model: str) -> int:
    """Rows in a model's queue."""
    (found,) = re.findall(rf'fathom_queue_rows\{{model="{model}",version="1"\}} (\d+)', metrics(server))
    return int(found)


def metrics(server: Running) -> str:
    return httpx.get(f"{server.url}/metrics").text


def wait_until(holds: Callable[[], object]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_function_answers_every_dialect(running: Running) -> None:
    with httpx.Client(base_url=running.url) as client:
        assert client.get("/health/ready").status_code == 200
        (output,) = client.post("/predict", json={"model": "double", "inputs": [[1, 2, 3]]}).json()["outputs"]
        assert output["outputs"] == {"output": [2, 4, 6]}
        tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        answer = client.post("/v2/models/double/infer", json={"inputs": [tensor]}).json()
        assert answer["outputs"] == [{"name": "output", "shape": [1, 3], "datatype": "FP32", "data": [2, 4, 6]}]
        answer = client.post("/v1/models/double:predict", json={"instances": [[1, 2, 3]]}).json()
        assert answer["predictions"] == [[2, 4, 6]]
        assert {one["name"]: one["state"] for one in client.get("/models").json()} == {
            "double": "ready",
            "picky": "ready",
        }
        assert 'fathom_model_ready{model="double",version="1"} 1.0' in client.get("/metrics").text


def test_function_is_called_with_whole_batches_off_the_event_loop(running: Running, models: Models) -> None:
    models.num_rows.clear()
    models.may_go.clear()
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, running, "double", [[n, n, n]]) for n in range(12)]
        wait_until(lambda: sum(models.num_rows) + waiting(running, "double") == 12)
        models.may_go.set()
        answers = [one.result().json()["outputs"][0]["outputs"]["output"] for one in asked]
    assert answers == [[2 * n] * 3 for n in range(12)]
    assert sum(models.num_rows) == 12
    assert len(models.num_rows) == 2  # those that came while the first ran went together
    for _ in range(20):  # quick by now, and still not the event loop's work
        ask(running, "double", [[1, 2, 3]])
    assert models.threads <= {"MainThread", "fathom-device"}


def test_fault_hits_whoever_is_at_fault_and_nobody_else(running: Running) -> None:
    rows = [[1, 1, 1], [-1, 0, 0], [2, 2, 2], [10, 0, 0], [7, 0, 0], [3, 3, 3]]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda row: ask(running, "picky", [row]), rows * 5))
    assert [one.status_code for one in answers] == [200, 500, 200, 422, 500, 200] * 5
    failed, refused, left = (answers[place].json() for place in (1, 3, 4))
    assert failed["title"] == "The model failed"
    assert failed["detail"] == "model 'picky' raised ValueError: negative"
    assert refused["detail"] == "x is above 9; send smaller ones"
    assert left["detail"] == "model 'picky' raised SystemExit: 7"
    assert answers[5].json()["outputs"][0]["outputs"] == {"output": 9}


def test_server_that_closes_answers_what_it_accepted(models: Models) -> None:
    running = serve(models.double, inputs=X, name="slow", block=False, port=0)
    models.may_go.clear()
    models.num_rows.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(ask, running, "slow", [[1, 2, 3]])
        wait_until(lambda: models.num_rows)
        closed = pool.submit(running.close)
        time.sleep(0.05)
        assert not closed.done()
        models.may_go.set()
        assert asked.result().json()["outputs"][0]["outputs"] == {"output": [2, 4, 6]}
        closed.result()
    running.close()
    with pytest.raises(httpx.ConnectError):
        ask(running, "slow", [[1, 2, 3]])


def test_stack_of_layers_runs_any_chain(tiny_mlp_checkpoint: Path) -> None:
    import torch

    from models.chain import Chain
    from models.checkpoint import load_checkpoint

    model: Any = load_checkpoint(tiny_mlp_checkpoint)
    rows = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    with serve(model, name="mine", inputs={"features": ("FP32", [-1, 6])}, block=False, port=0) as server:
        chains = ["full", "0,2", "0-1,1-2"]
        body = {"model": "mine", "inputs": rows.tolist(), "chain": chains}
        outputs = httpx.post(f"{server.url}/predict", json=body).json()["outputs"]
        for row, text, output in zip(rows, chains, outputs, strict=True):
            chain = Chain.full(3) if text == "full" else Chain.parse(text)
            with torch.no_grad():
                wanted = model.along({"features": torch.from_numpy(row[None])}, chain).numpy()[0]
            np.testing.assert_allclose(output["outputs"]["output"], wanted, atol=1e-5)
            assert (output["chain"], output["layers_full"]) == (list(chain.layers), 3)
        found = httpx.post(f"{server.url}/cola/search", json={"model": "mine", "input": rows[0].tolist()}, timeout=30)
        assert found.json()["best"]["certified"]


def test_repository_is_served_beside(tiny_repository: Path, models: Models) -> None:
    bound = {"double": bind(models.double, X)}
    with serve(bound, repository=tiny_repository, backend="fake", block=False, port=0) as server:
        states = {one["name"]: one["state"] for one in httpx.get(f"{server.url}/models").json()}
    assert states == {"double": "ready", "tinylm": "ready", "tinymlp": "ready"}
    with pytest.raises(InputError, match=r"models \['tinylm'\] are in .* serve them under other names"):
        serve({"tinylm": bind(models.double, X)}, repository=tiny_repository, block=False)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        ((), {}, "nothing to serve came"),
        ((len,), {}, "no inputs came"),
        (({"a": len},), {}, "model 'a' is <built-in function len>; make it one with bind"),
        ((bind(lambda x: x, X),), {"inputs": X}, "inputs or outputs came beside what bind"),
        ((lambda x: x,), {"inputs": X}, "model '<lambda>', name"),
        ((lambda x: x,), {"inputs": X, "name": "x", "prot": 1}, "FATHOM_PROT"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_starts(arguments: Any, options: Any, told: str) -> None:
    with pytest.raises((InputError, SettingsError), match=told):
        serve(*arguments, **{"block": False, "port": 0, **options})


def test_model_that_is_unloaded_is_gone(models: Models) -> None:
    both = {"double": bind(models.double, X), "other": bind(models.picky, X)}
    with serve(both, block=False, port=0) as server, httpx.Client(base_url=server.url) as client:
        assert client.post("/models/other/unload").json() == []
        assert [one["name"] for one in client.get("/models").json()] == ["double"]
        for path, body in (("/predict", {"model": "other", "inputs": [[1, 2, 3]]}), ("/models/other/load", None)):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["title"]) == (404, "No such model")
        assert ask(server, "double", [[1, 2, 3]]).status_code == 200


def test_address_in_use_is_told_and_nothing_is_left(models: Models) -> None:
    with serve(models.double, inputs=X, block=False, port=0) as server:
        before = set(threading.enumerate())
        for taken in (
            {"port": int(server.url.rpartition(":")[2])},
            {"port": 0, "grpc_port": 1 << 15, "host": "192.0.2.1"},
        ):
            with pytest.raises(AddressError):
                serve(models.double, inputs=X, block=False, **taken)
        assert set(threading.enumerate()) <= before


def test_event_loop_is_not_blocked() -> None:
    async def in_a_notebook() -> None:
        serve(lambda x: x, inputs=X, name="x", port=0)

    with pytest.raises(InputError, match="block=False"):
        asyncio.run(in_a_notebook())


def test_script_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT % True]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        address = re.search(r'"address":"([^"]+)"', process.stderr.readline())
        assert address
        wait_until(lambda: httpx.get(f"http://{address[1]}/health/ready").status_code == 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_script_that_ends_without_closing_ends(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-c", SCRIPT % False], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
