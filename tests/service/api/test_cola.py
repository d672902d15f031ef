"""POST /cola/search: one sample or several, with and without a label, whole or streamed."""

import json
import socket
import threading
import time
from typing import Any

import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
PROMPT = "12+7="
SHORT = {"max_new_tokens": 4}
BUDGET = {"simulations": 60}


def _search(server: Any, model: str, **body: Any) -> Any:
    response = server.post("/cola/search", model=model, **{"budget": BUDGET, **body})
    assert response.status_code == 200, response.text
    return response.json()


def _without_time(result: Any) -> Any:
    stats = {name: value for name, value in result["stats"].items() if name != "seconds"}
    return {name: value for name, value in result.items() if name not in ("id", "stats")} | stats


def test_agreement_finds_a_chain_with_the_full_answer(server: Any) -> None:
    result = _search(server, "tinylm", input=PROMPT, max_new_tokens=4)
    (full,) = server.predict("tinylm", [PROMPT], parameters=SHORT)["outputs"]
    (best,) = server.predict("tinylm", [PROMPT], chain=result["best"]["chain"], parameters=SHORT)["outputs"]
    assert result["reward"] == "agreement"
    assert not result["oracle"]
    assert result["full"]["text"] == full["text"]
    assert best["token_ids"] == full["token_ids"]
    assert result["best"]["certified"]
    assert result["best"]["length"] < 3 or result["best"]["chain"] == [0, 1, 2]


def test_target_is_reached_whenever_certified(server: Any) -> None:
    chain = [0, 0, 2]
    (wanted,) = server.predict("tinylm", [PROMPT], chain=chain)["outputs"]
    target = wanted["token_ids"] if wanted["finish_reason"] == "stop" else wanted["text"]
    target = target[:-1] if isinstance(target, list) else target  # the end token is added
    result = _search(server, "tinylm", input=PROMPT, target=target, reward="target")
    assert result["oracle"]
    if result["best"]["certified"]:
        (said,) = server.predict("tinylm", [PROMPT], chain=result["best"]["chain"])["outputs"]
        assert said["token_ids"] == wanted["token_ids"]
    else:
        assert result["best"]["chain"] == [0, 1, 2]


def test_class_can_be_the_target(server: Any) -> None:
    chosen = []
    for chain in ("full", "0", "1", "2", "0,0,2"):
        logits = server.predict("tinymlp", [ROW], chain=chain)["outputs"][0]["outputs"]["logits"]
        chosen.append(max(range(4), key=logits.__getitem__))
    result = _search(server, "tinymlp", input=ROW, target=chosen[-1])
    assert result["best"]["certified"]
    assert result["best"]["text"] == str(chosen[-1])


def test_several_samples_get_one_result_each(server: Any) -> None:
    prompts = [PROMPT, "3-1=", "5*5="]
    together = _search(server, "tinylm", inputs=prompts, max_new_tokens=4)
    alone = [_search(server, "tinylm", input=prompt, max_new_tokens=4) for prompt in prompts]
    for one, other in zip(together["results"], alone, strict=True):
        assert one["best"] == other["best"]
        assert one["pareto"] == other["pareto"]
    assert together["model"] == "tinylm"


def test_same_seed_same_result_whatever_else_runs(server: Any) -> None:
    body = {"input": PROMPT, "max_new_tokens": 4, "seed": 3}
    alone = _without_time(_search(server, "tinylm", **body))
    is_over = threading.Event()

    def hammer() -> None:
        while not is_over.is_set():
            server.predict("tinylm", ["5+5=", "6-6="], chain=["0,0,2", "1"], parameters=SHORT)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert _without_time(_search(server, "tinylm", **body)) == alone
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert alone["deterministic"]


def test_stats_count_what_the_layers_did(server: Any) -> None:
    before = server.metric("fathom_layer_evaluations_total", model="tinylm")
    stats = _search(server, "tinylm", input=PROMPT, max_new_tokens=4)["stats"]
    assert server.metric("fathom_layer_evaluations_total", model="tinylm") - before == stats["layer_evaluations"]
    assert stats["layer_evaluations"] <= stats["layer_evaluations_naive"]
    assert stats["distinct_chains"] <= stats["simulations"] <= BUDGET["simulations"]


def test_pareto_front_holds_no_chain_another_beats(server: Any) -> None:
    front = _search(server, "tinymlp", input=ROW, top_k=3)["pareto"]
    assert 1 <= len(front) <= 3
    for one in front:
        assert not any(
            other["reward"] >= one["reward"] and other["length"] < one["length"] for other in front if other != one
        )


def test_time_can_be_the_budget(server: Any) -> None:
    space = {"max_length": 12}
    result = _search(server, "tinylm", input=PROMPT, budget={"simulations": None, "seconds": 0.2}, space=space)
    assert result["stopped_by"] in ("seconds", "exhausted")
    assert result["deterministic"] == (result["stopped_by"] != "seconds")
    assert result["space"]["max_length"] == 12


def test_stream_tells_progress_and_then_the_same_result(server: Any) -> None:
    body = {"model": "tinylm", "input": PROMPT, "budget": BUDGET, "max_new_tokens": 4}
    with server.client.stream("POST", "/cola/search", json={**body, "stream": True}) as response:
        text = response.read().decode()
    events = [block.split("\n") for block in text.strip().split("\n\n")]
    assert {name for name, _ in events[:-1]} == {"event: progress"}
    done = [json.loads(data.removeprefix("data: "))["stats"]["simulations"] for _, data in events[:-1]]
    assert done == sorted(done)
    assert events[-1][0] == "event: result"
    result = json.loads(events[-1][1].removeprefix("data: "))
    assert _without_time(result) == _without_time(_search(server, "tinylm", input=PROMPT, max_new_tokens=4))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_client_that_leaves_ends_the_search(serve: Any, is_streamed: bool) -> None:
    with serve(backend="onnx") as server:
        body = {
            "model": "tinylm",
            "input": PROMPT,
            "budget": {"simulations": 100_000},
            "space": {"max_length": 12},
            "stream": is_streamed,
        }
        if is_streamed:
            with server.client.stream("POST", "/cola/search", json=body) as response:
                next(response.iter_raw())
        else:
            sent = json.dumps(body).encode()
            with socket.create_connection(server.address) as connection:
                head = "POST /cola/search HTTP/1.1", "host: x", "content-type: application/json"
                connection.sendall("\r\n".join((*head, f"content-length: {len(sent)}", "", "")).encode() + sent)
                _wait_until(lambda: server.metric("fathom_layer_calls_total", model="tinylm") > 20)
        _wait_until(lambda: server.metric("fathom_searches_total", outcome="cancelled") == 1)
        _wait_until(
            lambda: server.metric("fathom_queue_requests") == server.metric("fathom_kv_pages_used") == 0  # nothing left
        )
        calls = server.metric("fathom_layer_calls_total")
        time.sleep(0.05)
        assert server.metric("fathom_layer_calls_total") == calls
        server.predict("tinylm", ["1+1="])


def _wait_until(holds: Any) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
