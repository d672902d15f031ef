"""Clients and priorities over HTTP: who asks for little is not held up by who asks for much, and limits are named."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
PASS_S = 0.1


@pytest.fixture
def crowded(serve: Any, pace: Any) -> Iterator[Any]:
    """A server at which 40 batches of one client wait."""
    with serve(max_batch_rows=4) as server:
        pace.seconds = PASS_S
        asking = threading.Thread(target=_ask, args=(server, 160), kwargs={"x-client-id": "greedy"})
        asking.start()
        while server.metric("fathom_queue_rows", model="tinymlp") < 100:
            time.sleep(0.01)
        yield server
        pace.seconds = 0.0
        asking.join()


def _ask(server: Any, num_rows: int, **headers: str) -> Any:
    return server.client.post("/predict", json={"model": "tinymlp", "inputs": [ROW] * num_rows}, headers=headers)


def test_another_client_gets_its_row_at_once(crowded: Any) -> None:
    answer = _ask(crowded, 1, **{"x-client-id": "modest"})
    assert answer.status_code == 200
    assert answer.json()["timing"]["queue_ms"] < 1000 * 10 * PASS_S
    assert crowded.metric("fathom_queue_rows", model="tinymlp") > 40


def test_same_client_waits_for_its_own_rows(crowded: Any) -> None:
    started = crowded.metric("fathom_queue_rows", model="tinymlp")
    answer = _ask(crowded, 1, **{"x-client-id": "greedy"})
    assert answer.json()["timing"]["queue_ms"] > 1000 * (started / 4 - 10) * PASS_S
    assert crowded.metric("fathom_queue_rows", model="tinymlp") == 0


@pytest.mark.parametrize("how", ["header", "field"])
def test_urgent_request_overtakes_those_of_the_same_client(crowded: Any, how: str) -> None:
    body: dict[str, Any] = {"model": "tinymlp", "inputs": [ROW], "parameters": {"priority": int(how == "field")}}
    headers = {"x-client-id": "greedy", **({"x-request-priority": "1"} if how == "header" else {})}
    answer = crowded.client.post("/predict", json=body, headers=headers)
    assert answer.json()["timing"]["queue_ms"] < 1000 * 10 * PASS_S
    assert crowded.metric("fathom_queue_rows", model="tinymlp") > 40


def test_large_request_is_cut_into_batches_and_joined(serve: Any) -> None:
    rows = [[float(number % 7)] * 6 for number in range(250)]
    with serve(max_batch_rows=4) as server:
        together = server.predict("tinymlp", rows)["outputs"]
        for number in range(7):
            (alone,) = server.predict("tinymlp", [rows[number]])["outputs"]
            assert all(one == alone for one in together[number::7])
        calls = server.metric("fathom_layer_calls_total", model="tinymlp")
        assert server.metric("fathom_layer_call_rows_bucket", model="tinymlp", le="4.0") == calls


def test_full_queue_says_when_there_is_room(serve: Any, pace: Any, problem: Any) -> None:
    with serve(max_batch_rows=4, max_queue_rows=100, max_client_rows=90) as server:
        pace.seconds = PASS_S
        asking = threading.Thread(target=_ask, args=(server, 88), kwargs={"x-client-id": "greedy"})
        asking.start()
        while server.metric("fathom_queue_rows", model="tinymlp") > 70 or not pace.num_passes:
            time.sleep(0.01)
        waiting = server.metric("fathom_queue_rows", model="tinymlp")
        full = _ask(server, 85, **{"x-client-id": "other"})
        problem(full, 429, "rows", "limit of 100")
        assert 1 <= int(full.headers["retry-after"]) <= 2 + (waiting - 15) / 4 * PASS_S * 3
        over = _ask(server, 85, **{"x-client-id": "greedy"})
        assert over.status_code == 429
        assert server.metric("fathom_rejected_total", model="tinymlp", reason="rows") >= 85
        pace.seconds = 0.0
        asking.join()


def test_client_over_its_bound_is_named_and_others_are_let_in(serve: Any, pace: Any, problem: Any) -> None:
    with serve(max_batch_rows=4, max_client_rows=60) as server:
        pace.seconds = PASS_S
        asking = threading.Thread(target=_ask, args=(server, 60), kwargs={"x-client-id": "greedy"})
        asking.start()
        while server.metric("fathom_queue_rows", model="tinymlp") < 30:
            time.sleep(0.01)
        problem(_ask(server, 50, **{"x-client-id": "greedy"}), 429, "client 'id greedy'", "limit of 60")
        assert server.metric("fathom_rejected_total", model="tinymlp", reason="client") == 50
        assert _ask(server, 1, **{"x-client-id": "other"}).status_code == 200
        pace.seconds = 0.0
        asking.join()
