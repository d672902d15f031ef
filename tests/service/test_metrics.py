"""GET /metrics: the names there are, and counters that agree exactly with the answers and with the layers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
# Names that dashboards rely on.
PER_ROUTE = ("requests_total", "request_seconds_count")
PER_MODEL = (
    "queue_seconds_count",
    "compute_seconds_count",
    "time_to_first_token_seconds_count",
    "inter_token_seconds_count",
    "prompt_tokens_total",
    "generated_tokens_total",
    "layer_calls_total",
    "layers_executed_total",
    "layer_evaluations_total",
    "layers_full_total",
    "layers_answered_total",
    "chain_length_count",
    "layer_call_rows_count",
    "queue_requests",
    "queue_rows",
    "queue_tokens",
    "rejected_total",
    "cancelled_total",
    "expired_total",
    "running_sequences",
    "prefix_cache_hit_tokens",
    "preemptions",
    "kv_pages_used",
    "kv_pages",
    "kv_pages_cached",
    "model_load_seconds",
    "model_ready",
    "search_simulations_total",
    "search_distinct_chains_total",
    "search_seconds_count",
    "searches_total",
)
# Requests with all kinds of chains: text, list, one per input, skips, loops, orders.
MIX: list[dict[str, Any]] = [
    {"model": "tinylm", "inputs": ["12+7="]},
    {"model": "tinylm", "inputs": ["12+7=", "3-1=", "5*5="], "chain": ["0,0,2", [1], "full"]},
    {"model": "tinylm", "inputs": ["4+4="] * 5, "chain": [2, 1, 0, 0]},
    {"model": "tinylm", "inputs": ["4+4=", "9-"], "chain": "0,2", "parameters": {"max_new_tokens": 3}},
    {"model": "tinylm", "inputs": ["1+1="], "targets": ["2"], "parameters": {"mode": "score"}, "chain": "0,1,1"},
    {"model": "tinymlp", "inputs": [ROW] * 3, "chain": ["0", "0,1,2,2", "full"]},
    {"model": "tinymlp", "inputs": [ROW] * 100, "chain": "1-2"},
]


def test_all_names_are_there(server: Any) -> None:
    server.predict("tinylm", ["12+7="])
    response = server.post("/cola/search", model="tinylm", input="1+1=", budget={"simulations": 8})
    assert response.status_code == 200
    for name in PER_ROUTE:
        assert server.metric(f"fathom_{name}", route="/predict") >= 1
    for name in PER_MODEL:
        server.metric(f"fathom_{name}", model="tinylm", version="1")
    assert server.metric("fathom_kv_pages", model="tinylm") >= 12
    assert server.metric("fathom_searches_total", model="tinylm") == 1


def test_requests_are_counted_by_route_and_outcome(serve: Any) -> None:
    with serve() as server:
        before = server.metric("fathom_requests_total", route="unmatched")
        server.predict("tinylm", ["1+1="])
        server.post("/predict", model="absent", inputs=["1"])
        server.post("/predict", model="tinylm")
        for number in range(5):
            server.client.get(f"/absent/{number}")
        assert server.metric("fathom_requests_total", route="/predict", outcome="200") == 1
        assert server.metric("fathom_requests_total", route="/predict", outcome="404") == 1
        assert server.metric("fathom_requests_total", route="/predict", outcome="422") == 1
        assert server.metric("fathom_requests_total", route="unmatched") == before + 5
        server.client.get("/models/tinylm")
        assert server.metric("fathom_requests_total", route="/models/{model}") == 1


@contextmanager
def _hooked() -> Iterator[Counter[str]]:
    """Count the calls of torch layers, and the rows that went through them."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    from models.lm.block import Layer
    from models.mixers.residual_mlp import Block

    seen: Counter[str] = Counter()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, Layer | Block):
            seen.update(calls=1, rows=args[0].shape[0])

    handle = register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("model", ["tinylm", "tinymlp"])
def test_responses_counters_and_layers_agree_exactly(serve: Any, model: str) -> None:
    with serve(backend="eager") as server, _hooked() as seen:
        told: Counter[int] = Counter()
        evaluations = 0
        for body in (body for body in MIX if body["model"] == model):
            answer = server.predict(**body)
            evaluations += answer["usage"]["layer_evaluations"]
            for output in answer["outputs"]:
                passes = output["layers_executed"] // len(output["chain"])
                assert output["layers_full"] == 3 * passes
                told.update(output["chain"] * passes)
        counted = {
            layer: server.metric("fathom_layers_executed_total", model=model, layer=str(layer)) for layer in told
        }
        assert counted == told
        assert server.metric("fathom_layers_answered_total", model=model) == told.total() == seen["rows"]
        assert server.metric("fathom_layer_calls_total", model=model) == seen["calls"]
        assert server.metric("fathom_layer_evaluations_total", model=model) == evaluations
        assert server.metric("fathom_layer_call_rows_sum", model=model) == seen["rows"]


def test_search_tells_what_the_layers_did(serve: Any) -> None:
    with serve(backend="eager") as server, _hooked() as seen:
        body = {"model": "tinymlp", "input": ROW, "budget": {"simulations": 40}}
        stats = server.post("/cola/search", **body).json()["stats"]
        assert stats["layer_evaluations"] == server.metric("fathom_layer_evaluations_total", model="tinymlp")
        assert seen["rows"] == server.metric("fathom_layers_executed_total", model="tinymlp")
        assert seen["rows"] == stats["layer_evaluations"]
        assert server.metric("fathom_search_simulations_total") == stats["simulations"]
