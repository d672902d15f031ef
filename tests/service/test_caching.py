"""A served response cache: hits are said in body, header and metrics, and cost no layer."""

from typing import Any

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


def test_hits_are_told_and_run_nothing(serve: Any, pace: Any) -> None:
    with serve(response_cache_bytes=1 << 20) as server:
        pace.num_passes = 0
        body = {"model": "tinylm", "inputs": ["12+7=", "3-"], "parameters": {"temperature": 1, "seed": 5}}
        first = server.post("/predict", **body)
        passes, layers = pace.num_passes, server.metric("fathom_layers_executed_total")
        again = server.post("/predict", **body)
        assert (pace.num_passes, server.metric("fathom_layers_executed_total")) == (passes, layers)
        assert "cached" not in first.json()
        assert "x-fathom-cached" not in first.headers
        assert again.json()["cached"] == 2
        assert again.headers["x-fathom-cached"] == "2"
        assert again.json()["usage"] == {**first.json()["usage"], "layer_evaluations": 0}
        for before, after in zip(first.json()["outputs"], again.json()["outputs"], strict=True):
            assert after == {**before, "layers_executed": 0}
        assert server.metric("fathom_cache_hits_total", model="tinylm") == 2
        assert server.metric("fathom_cache_misses_total", model="tinylm") == 2
        assert server.metric("fathom_cache_bytes", model="tinylm") > 0


def test_every_dialect_tells(serve: Any) -> None:
    with serve(response_cache_bytes=1 << 20) as server:
        tensors = [{"name": "features", "shape": [2, 6], "datatype": "FP32", "data": ROW * 2}]
        first, again = (server.post("/v2/models/tinymlp/infer", inputs=tensors).json() for _ in range(2))
        assert again["outputs"] == first["outputs"]
        assert again["parameters"] == {"chain": "0-2", "layers_executed": 0, "layers_full": 6, "cached": 1}
        body = {"model": "tinylm", "prompt": "1+1=", "temperature": 0}
        first, again = (server.post("/v1/completions", **body).json()["choices"][0] for _ in range(2))
        assert again["text"] == first["text"]
        assert (again["fathom"]["cached"], again["fathom"]["layers_executed"]) == (1, 0)
        assert "cached" not in first["fathom"]


def test_nothing_is_kept_unless_asked_for_or_after_unloading(serve: Any, pace: Any) -> None:
    body: dict[str, Any] = {"model": "tinymlp", "inputs": [ROW]}
    with serve() as server:
        assert "cached" not in [server.predict(**body) for _ in range(2)][1]
    with serve(response_cache_bytes=1 << 20) as server:
        assert [server.predict(**body) for _ in range(2)][1]["cached"] == 1
        server.post("/models/tinymlp/unload")
        server.post("/models/tinymlp/load")
        assert "cached" not in server.predict(**body)
