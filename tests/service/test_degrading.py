"""A served model that sheds load in depth: it says so everywhere, spares explicit chains, and recovers."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
LADDER = {"tinymlp": ["0-1", "2"], "tinylm": ["0,2"]}


@pytest.fixture
def loaded(serve: Any, pace: Any) -> Iterator[Any]:
    """A server on which so much waits that the last steps of the ladders hold."""
    with serve(degrade=LADDER, degrade_wait_s=0.2, max_batch_rows=4) as server, ThreadPoolExecutor(33) as threads:
        pace.seconds = 0.05
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                server.predict("tinymlp", [ROW] * 4)
                server.predict("tinylm", ["1+1="], parameters={"max_new_tokens": 2})

        asked = [threads.submit(flood) for _ in range(32)]
        try:
            _wait_until(lambda: server.metric("fathom_degrade_step", model="tinymlp") == 2)
            _wait_until(lambda: server.metric("fathom_degrade_step", model="tinylm") == 1)
            yield server
        finally:
            pace.seconds = 0.0
            stop.set()
            for one in asked:
                one.result()


def test_load_is_shed_and_every_dialect_says_so(loaded: Any) -> None:
    answer = loaded.post("/predict", model="tinymlp", inputs=[ROW])
    assert answer.headers["x-fathom-degraded"] == "2"
    assert answer.json()["degraded"] is True
    assert answer.json()["outputs"][0]["chain"] == [2]
    assert answer.json()["usage"]["layer_evaluations"] == 1
    answer = loaded.post("/predict", model="tinylm", inputs=["1+1="], stream=True, parameters={"max_new_tokens": 2})
    assert answer.headers["x-fathom-degraded"] == "0,2"
    assert '"degraded":true' in answer.text
    tensors = [{"name": "features", "shape": [1, 6], "datatype": "FP32", "data": ROW}]
    answer = loaded.post("/v2/models/tinymlp/infer", inputs=tensors)
    assert answer.json()["parameters"] == {"chain": "2", "layers_executed": 1, "layers_full": 3, "degraded": True}
    answer = loaded.post("/v2/models/tinylm/generate", text_input="1+1=", parameters={"max_new_tokens": 2})
    assert answer.json()["parameters"]["degraded"] is True
    answer = loaded.post("/v1/completions", model="tinylm", prompt="1+1=", max_tokens=2)
    assert answer.json()["choices"][0]["fathom"]["chain"] == [0, 2]
    assert answer.json()["choices"][0]["fathom"]["degraded"] is True
    assert loaded.metric("fathom_degraded_total", model="tinymlp", step="2") >= 2


def test_explicit_chains_are_never_touched(loaded: Any) -> None:
    for chain in ("0-2", [0, 1, 2], ["full"], "1,1,1"):
        answer = loaded.post("/predict", model="tinymlp", inputs=[ROW], chain=chain)
        assert "x-fathom-degraded" not in answer.headers
        assert "degraded" not in answer.json()
        assert len(answer.json()["outputs"][0]["chain"]) == 3


def test_full_chain_comes_back_when_the_pressure_is_gone(serve: Any, pace: Any) -> None:
    with serve(degrade=LADDER, degrade_wait_s=0.05, max_batch_rows=1) as server:
        full = server.predict("tinymlp", [ROW])
        pace.seconds = 0.05
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: server.predict("tinymlp", [ROW]), range(48)))
        assert {len(answer["outputs"][0]["chain"]) for answer in answers} >= {3, 1}
        assert all(answer.get("degraded", False) == (len(answer["outputs"][0]["chain"]) < 3) for answer in answers)
        pace.seconds = 0.0
        _wait_until(lambda: server.metric("fathom_degrade_step", model="tinymlp") == 0)
        again = server.predict("tinymlp", [ROW])
        assert again["outputs"] == full["outputs"]
        assert "degraded" not in again


def test_ladder_that_does_not_fit_its_model_stops_the_load(serve: Any, problem: Any) -> None:
    with serve(wait=False, degrade={"tinymlp": ["0-1", "0-2"]}) as server:
        _wait_until(lambda: server.client.get("/models/tinymlp").json()[0]["state"] == "failed")
        problem(server.post("/predict", model="tinymlp", inputs=[ROW]), 503, "each must be shorter")


def _wait_until(holds: Any) -> None:
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come true within 20 s")
