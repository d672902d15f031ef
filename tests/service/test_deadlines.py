"""Requests whose time is over, and clients that leave: every route answers or lets go, and nothing stays behind."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
LONG = {"max_new_tokens": 40}
TENSORS = [{"name": "features", "shape": [1, 6], "datatype": "FP32", "data": ROW}]
TEXTS = [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["12+7="]}]
SEARCH = {"budget": {"simulations": 500}, "model": "tinylm", "input": "1+1=", "reward": "agreement"}
# Every route that runs a model: path, body, and whether it streams.
ROUTES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "predict text": ("/predict", {"model": "tinylm", "inputs": ["12+7="], "parameters": LONG}, False),
    "predict texts": ("/predict", {"model": "tinylm", "inputs": ["12+7=", "1+"], "parameters": LONG}, False),
    "predict stream": ("/predict", {"model": "tinylm", "inputs": ["1+"], "parameters": LONG, "stream": True}, True),
    "score": (
        "/predict",
        {"model": "tinylm", "inputs": ["1+1="], "targets": ["2"], "parameters": {"mode": "score"}},
        False,
    ),
    "predict rows": ("/predict", {"model": "tinymlp", "inputs": [ROW] * 3}, False),
    "infer rows": ("/v2/models/tinymlp/infer", {"inputs": TENSORS}, False),
    "infer text": ("/v2/models/tinylm/infer", {"inputs": TEXTS, "parameters": LONG}, False),
    "generate": ("/v2/models/tinylm/generate", {"text_input": "1+", "parameters": LONG}, False),
    "generate_stream": ("/v2/models/tinylm/generate_stream", {"text_input": "1+", "parameters": LONG}, True),
    "completions": ("/v1/completions", {"model": "tinylm", "prompt": "1+", "max_tokens": 40, "n": 2}, False),
    "completions stream": (
        "/v1/completions",
        {"model": "tinylm", "prompt": "1+", "max_tokens": 40, "stream": True},
        True,
    ),
    "search": ("/cola/search", SEARCH, False),
    "search stream": ("/cola/search", {**SEARCH, "stream": True}, True),
}
routes = pytest.mark.parametrize(("path", "body", "streams"), ROUTES.values(), ids=ROUTES)


@dataclass
class Slow:
    """A server whose models take a while for each pass."""

    server: Any
    pace: Any

    def count(self, name: str) -> float:
        found: float = self.server.metric(f"fathom_{name}")
        return found

    def is_at_rest(self) -> bool:
        return self.count("queue_requests") == self.count("running_sequences") == self.count("kv_pages_used") == 0


@pytest.fixture
def slow(serve: Any, pace: Any) -> Iterator[Slow]:
    with serve() as server:
        pace.seconds, pace.num_passes = 0.3, 0
        yield Slow(server, pace)


@routes
def test_request_whose_time_is_over_hears_so_and_frees_what_it_held(
    slow: Slow, path: str, body: dict[str, Any], streams: bool
) -> None:
    started = time.perf_counter()
    limit = {"x-request-timeout": "0.5" if streams else "0.1"}
    response = slow.server.client.post(path, json=body, headers=limit)
    assert time.perf_counter() - started < 3.0  # the whole answer takes 12
    if response.status_code == 200:
        assert streams
        last = response.text.strip().rpartition("data: ")[2]
        assert "more than its 0.5 s" in str(json.loads(last))
    else:
        assert response.status_code == 504, response.text
        assert "s; allow more time" in response.text
    assert slow.count("expired_total") >= 1
    assert slow.count("cancelled_total") == 0
    _wait_until(slow.is_at_rest)
    slow.pace.seconds = 0
    slow.server.predict("tinylm", ["1+1="], parameters={"max_new_tokens": 2})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"model": "tinymlp", "inputs": [ROW], "parameters": {"timeout_s": 0.1}}),
        ("/v2/models/tinymlp/infer", {"inputs": TENSORS, "parameters": {"timeout": 100_000}}),
        ("/v2/models/tinylm/generate", {"text_input": "1+", "parameters": {"timeout": 100_000}}),
    ],
    ids=["predict", "infer", "generate"],
)
def test_body_says_how_long_a_request_may_take(slow: Slow, path: str, body: dict[str, Any]) -> None:
    response = slow.server.post(path, **body)
    assert response.status_code == 504, response.text
    assert "more than its 0.1 s" in response.text


def test_server_says_how_long_any_request_may_take(serve: Any, pace: Any, problem: Any) -> None:
    with serve(max_request_s=0.2) as server:
        assert server.predict("tinymlp", [ROW])
        pace.seconds = 0.5
        answer = server.post("/predict", model="tinymlp", inputs=[ROW], parameters={"timeout_s": 60})
        problem(answer, 504, "more than its 0.2 s")


def test_waiting_work_that_is_too_late_never_runs(slow: Slow) -> None:
    slow.pace.seconds = 0.5
    answers: list[int] = []

    def ask(timeout_s: float) -> None:
        answer = slow.server.post("/predict", model="tinymlp", inputs=[ROW], parameters={"timeout_s": timeout_s})
        answers.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=(timeout_s,)) for timeout_s in (9.0, 0.2, 0.2, 0.2)]
    for thread in threads:
        thread.start()
        time.sleep(0.03)
    for thread in threads:
        thread.join()
    _wait_until(slow.is_at_rest)
    assert sorted(answers) == [200, 504, 504, 504]
    assert slow.pace.num_passes == 1


@routes
def test_client_that_leaves_is_noticed_and_its_rows_drop_out(
    slow: Slow, path: str, body: dict[str, Any], streams: bool
) -> None:
    with _sent(slow.server, path, body) as connection:
        _wait_until(lambda: slow.pace.num_passes >= 1 + streams)
        if streams:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    _wait_until(lambda: slow.count("cancelled_total") >= 1)
    _wait_until(slow.is_at_rest)
    passes = slow.pace.num_passes
    time.sleep(0.35)  # more than a pass
    assert slow.pace.num_passes == passes
    slow.pace.seconds = 0
    slow.server.predict("tinylm", ["1+1="], parameters={"max_new_tokens": 2})


def test_neighbours_of_a_client_that_leaves_are_answered_as_if_alone(slow: Slow) -> None:
    slow.pace.seconds = 0.02
    body = {"model": "tinylm", "inputs": ["12+7="], "parameters": LONG}
    alone = slow.server.predict(**body)["outputs"]
    found: list[Any] = []
    neighbour = threading.Thread(target=lambda: found.append(slow.server.predict(**body)["outputs"]))
    with _sent(slow.server, "/predict", body):
        neighbour.start()
        _wait_until(lambda: slow.count("running_sequences") == 2)
    neighbour.join()
    assert found == [alone]
    assert slow.count("cancelled_total") == 1


def _sent(server: Any, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection over which a request has been sent; leaving it hangs up."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(head.encode() + content)
    return connection


def _wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
