"""Request ids, the access log, and refusal while draining."""

import io
import json
import logging
import time
from typing import Any

import pytest

from service.logs import JsonFormatter


def test_sent_request_id_is_taken_over(server: Any) -> None:
    body = {"model": "tinylm", "inputs": ["1+1="]}
    response = server.client.post("/predict", json=body, headers={"x-request-id": "my-request.1"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "my-request.1"
    response = server.client.get("/absent", headers={"x-request-id": "my-request.2"})
    assert response.headers["x-request-id"] == "my-request.2"
    assert response.json()["instance"] == "urn:request:my-request.2"


@pytest.mark.parametrize(
    "sent",
    [None, "", "two words", "x" * 129, "a\tb", "<script>"],
    ids=["none", "empty", "words", "too long", "tab", "markup"],
)
def test_missing_or_unusable_request_id_is_replaced(server: Any, sent: str | None) -> None:
    headers = {} if sent is None else {"x-request-id": sent}
    first, second = (server.client.get("/health/live", headers=headers).headers["x-request-id"] for _ in range(2))
    assert first != second
    assert sent not in (first, second)
    assert len(first) == 32


def test_streams_carry_the_request_id(server: Any) -> None:
    body = {"model": "tinylm", "inputs": ["1+1="], "stream": True}
    response = server.client.post("/predict", json=body, headers={"x-request-id": "streamed"})
    assert response.headers["x-request-id"] == "streamed"
    assert '"request_id":"streamed"' in response.text


def test_every_request_is_one_json_line_with_its_id(server: Any) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("fathom.access")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        server.client.post("/predict", json={"model": "absent", "inputs": ["1"]}, headers={"x-request-id": "logged"})
        server.client.get("/health/live")  # asked too often to be logged
        _wait_until(written.getvalue)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (line,) = [line for line in lines if line["path"] == "/predict" and line["status"] != 200]
    assert not any(line["path"].startswith("/health") for line in lines)
    assert line["request_id"] == "logged"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/predict", 404)
    assert line["seconds"] > 0


def test_draining_server_refuses_all_but_operations(serve: Any, problem: Any) -> None:
    with serve() as server:
        server.predict("tinylm", ["1+1="])
        server.app.state.lifecycle.is_draining = True
        for method, path in (("POST", "/predict"), ("POST", "/cola/search"), ("GET", "/models"), ("GET", "/absent")):
            response = server.client.request(method, path, json={"model": "tinylm", "inputs": ["1"]})
            problem(response, 503, "shutting down")
            assert response.headers["retry-after"]
            assert response.headers["connection"] == "close"
        problem(server.client.get("/health/ready"), 503)
        assert server.client.get("/health/live").json() == {"status": "live"}
        assert server.metric("fathom_requests_total", outcome="503") >= 4


def _wait_until(holds: Any) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
