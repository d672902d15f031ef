"""The Open Inference Protocol v2: the same answers as POST /predict, as JSON and as bytes."""

import json
import struct
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

from models.errors import ChainError
from service.engine.language import LanguageEngine

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
ROWS = np.array([ROW, ROW[::-1], [0.25] * 6], "<f4")


def _infer(server: Any, model: str, body: dict[str, Any], *raw: bytes) -> httpx.Response:
    document = json.dumps(body).encode()
    headers = {"inference-header-content-length": str(len(document))} if raw else {}
    response: httpx.Response = server.client.post(
        f"/v2/models/{model}/infer", content=b"".join((document, *raw)), headers=headers
    )
    return response


def _answer(response: httpx.Response) -> tuple[Any, bytes]:
    """The document of a response and what lies behind it."""
    assert response.status_code == 200, response.text
    size = int(response.headers.get("inference-header-content-length", len(response.content)))
    return json.loads(response.content[:size]), response.content[size:]


def _features(**members: Any) -> dict[str, Any]:
    return {"name": "features", "shape": list(ROWS.shape), "datatype": "FP32", **members}


def _binary(size: int = ROWS.nbytes) -> dict[str, Any]:
    return _features(parameters={"binary_data_size": size})


def _texts(*texts: str) -> dict[str, Any]:
    return {"name": "text_input", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


def _logits(server: Any, chain: Any = "full") -> Any:
    rows = server.predict("tinymlp", ROWS.tolist(), chain=chain)["outputs"]
    return np.array([row["outputs"]["logits"] for row in rows], np.float32)


def test_server_tells_its_name_version_and_extensions(server: Any) -> None:
    told = server.client.get("/v2").json()
    assert told["name"] == "fathom"
    assert told["version"] == server.app.version
    assert {"binary_tensor_data", "model_repository", "generate"} <= set(told["extensions"])
    assert server.client.get("/v2/health/live").json() == {"live": True}
    assert server.client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("path", ["", "/versions/1"])
def test_models_tell_what_they_take_and_give(server: Any, path: str) -> None:
    tensor = server.client.get(f"/v2/models/tinymlp{path}").json()
    assert tensor == {
        "name": "tinymlp",
        "versions": ["1"],
        "platform": "fathom_tensor",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 6]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
        "parameters": {"num_layers": 3, "max_chain_length": 12, "residual_form": "standard"},
    }
    language = server.client.get(f"/v2/models/tinylm{path}").json()
    assert language["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
    assert language["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}]
    assert server.client.get(f"/v2/models/tinylm{path}/ready").json() == {"name": "tinylm", "ready": True}


@pytest.mark.parametrize("data", [ROWS.tolist(), ROWS.ravel().tolist()], ids=["nested", "flat"])
def test_json_tensors_answer_as_predict(server: Any, data: list[Any]) -> None:
    told, rest = _answer(_infer(server, "tinymlp", {"id": "a", "inputs": [_features(data=data)]}))
    assert rest == b""
    assert told["id"] == "a"
    assert (told["model_name"], told["model_version"]) == ("tinymlp", "1")
    assert told["parameters"] == {"chain": "0-2", "layers_executed": 9, "layers_full": 9}
    (output,) = told["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("logits", [3, 4], "FP32")
    np.testing.assert_array_equal(np.float32(output["data"]).reshape(3, 4), _logits(server))


def test_binary_tensors_answer_as_json_ones(server: Any) -> None:
    wanted = [{"name": "logits", "parameters": {"binary_data": True}}]
    for extra in ({"outputs": wanted}, {"parameters": {"binary_data_output": True}}):
        response = _infer(server, "tinymlp", {"inputs": [_binary()], **extra}, ROWS.tobytes())
        assert response.headers["content-type"] == "application/octet-stream"
        told, rest = _answer(response)
        assert told["outputs"] == [
            {"name": "logits", "shape": [3, 4], "datatype": "FP32", "parameters": {"binary_data_size": 48}}
        ]
        np.testing.assert_array_equal(np.frombuffer(rest, "<f4").reshape(3, 4), _logits(server))


def test_each_side_chooses_its_own_form(server: Any) -> None:
    said = [{"name": "logits", "parameters": {"binary_data": False}}]
    body = {"inputs": [_binary()], "outputs": said, "parameters": {"binary_data_output": True}}
    told, rest = _answer(_infer(server, "tinymlp", body, ROWS.tobytes()))
    assert (len(told["outputs"][0]["data"]), rest) == (12, b"")
    body = {"inputs": [_features(data=ROWS.tolist())], "parameters": {"binary_data_output": True}}
    told, rest = _answer(_infer(server, "tinymlp", body))
    assert ("data" in told["outputs"][0], len(rest)) == (False, 48)


@pytest.mark.parametrize(
    ("chain", "told", "executed"),
    [("0,0,2", "0,0,2", 9), ([2, 1], "2,1", 6), (["full", "1", [0, 0]], ["0-2", "1", "0,0"], 6)],
)
def test_chain_rides_along(server: Any, chain: Any, told: Any, executed: int) -> None:
    body = {"inputs": [_binary()], "parameters": {"chain": chain, "binary_data_output": True}}
    document, rest = _answer(_infer(server, "tinymlp", body, ROWS.tobytes()))
    assert document["parameters"] == {"chain": told, "layers_executed": executed, "layers_full": 9}
    np.testing.assert_array_equal(np.frombuffer(rest, "<f4").reshape(3, 4), _logits(server, chain))


def test_more_rows_than_one_batch_takes_are_split(server: Any) -> None:
    rows = np.arange(900, dtype="<f4").reshape(150, 6) % 7
    body = {"inputs": [{**_binary(rows.nbytes), "shape": [150, 6]}], "parameters": {"binary_data_output": True}}
    _, rest = _answer(_infer(server, "tinymlp", body, rows.tobytes()))
    alone = server.predict("tinymlp", rows[[0, 70, 149]].tolist())["outputs"]
    np.testing.assert_allclose(
        np.frombuffer(rest, "<f4").reshape(150, 4)[[0, 70, 149]], [one["outputs"]["logits"] for one in alone], atol=1e-5
    )


def test_texts_answer_as_predict(server: Any) -> None:
    said = server.predict("tinylm", ["12+7=", "3-1="], chain=["0,0,2", "1"], parameters={"max_new_tokens": 4})
    parameters = {"chain": ["0,0,2", "1"], "max_new_tokens": 4}
    texts = [output["text"] for output in said["outputs"]]
    told, _ = _answer(_infer(server, "tinylm", {"inputs": [_texts("12+7=", "3-1=")], "parameters": parameters}))
    assert told["outputs"] == [{"name": "text_output", "shape": [2], "datatype": "BYTES", "data": texts}]
    assert told["parameters"] == {
        "chain": ["0,0,2", "1"],
        "layers_executed": sum(output["layers_executed"] for output in said["outputs"]),
        "layers_full": sum(output["layers_full"] for output in said["outputs"]),
    }
    raw = b"\5\0\0\00012+7=\4\0\0\0003-1="
    tensor = {"name": "text_input", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body = {"inputs": [tensor], "parameters": {**parameters, "binary_data_output": True}}
    told, rest = _answer(_infer(server, "tinylm", body, raw))
    assert told["outputs"][0]["shape"] == [2, 1]
    assert rest == b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)


def test_generate_answers_as_predict(server: Any) -> None:
    (said,) = server.predict("tinylm", ["12+7="], chain="0,2", parameters={"max_new_tokens": 5})["outputs"]
    body = {"text_input": "12+7=", "parameters": {"chain": "0,2", "max_new_tokens": 5, "stream": False}}
    for path in ("", "/versions/1"):
        assert server.post(f"/v2/models/tinylm{path}/generate", id="7", **body).json() == {
            "model_name": "tinylm",
            "model_version": "1",
            "id": "7",
            "text_output": said["text"],
            "parameters": {
                "chain": "0,2",
                "layers_executed": said["layers_executed"],
                "layers_full": said["layers_full"],
                "finish_reason": said["finish_reason"],
            },
        }


def _stream(server: Any, text: str, **parameters: Any) -> list[Any]:
    body = {"text_input": text, "parameters": parameters}
    with server.client.stream("POST", "/v2/models/tinylm/generate_stream", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]


def test_stream_adds_up_to_the_text(server: Any) -> None:
    whole = server.post("/v2/models/tinylm/generate", text_input="12+7=", parameters={"chain": "0-2"}).json()
    *events, last = _stream(server, "12+7=", chain="0-2", stream=True)
    assert len(events) > 1
    assert "".join(event["text_output"] for event in (*events, last)) == whole["text_output"]
    assert last["parameters"] == whole["parameters"]
    assert all("parameters" not in event for event in events)


def test_stream_holds_back_what_a_stop_text_cuts_off(server: Any) -> None:
    whole = server.post("/v2/models/tinylm/generate", text_input="12+7=").json()["text_output"]
    assert len(whole) >= 4
    for stop in (whole[2:4], whole[1], whole[:2], "no such text"):
        asked = {"text_input": "12+7=", "parameters": {"stop": [stop]}}
        cut = server.post("/v2/models/tinylm/generate", **asked).json()["text_output"]
        assert cut == whole.partition(stop)[0]
        events = _stream(server, "12+7=", stop=[stop])
        assert "".join(event["text_output"] for event in events) == cut
        assert "parameters" in events[-1]


def test_client_that_leaves_a_stream_frees_its_slots(serve: Any) -> None:
    with serve(backend="onnx", num_threads=1) as server:
        body = {"text_input": "12+7=", "parameters": {"chain": [0, 1, 2] * 4}}
        for _ in range(10):
            with server.client.stream("POST", "/v2/models/tinylm/generate_stream", json=body) as response:
                next(response.iter_raw())
        ends = time.monotonic() + 10
        while server.metric("fathom_running_sequences") or server.metric("fathom_kv_pages_used"):
            assert time.monotonic() < ends
            time.sleep(0.01)


def test_error_within_a_stream_is_its_last_event(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LanguageEngine.stream

    async def broken(*arguments: Any) -> Any:
        async for one in whole(*arguments):
            yield one
            raise ChainError("along chain 0 the outputs are not finite; repeat fewer layers")

    monkeypatch.setattr(LanguageEngine, "stream", broken)
    first, last = _stream(server, "12+7=")
    assert first["text_output"]
    assert last == {"error": "along chain 0 the outputs are not finite; repeat fewer layers"}


def test_requests_are_counted_by_their_whole_route(server: Any) -> None:
    _answer(_infer(server, "tinymlp", {"inputs": [_binary()]}, ROWS.tobytes()))
    assert server.metric("fathom_requests_total", route="/v2/models/{model}/infer", outcome="200") >= 1


def test_concurrent_requests_answer_as_alone(server: Any) -> None:
    expected = {chain: _logits(server, chain) for chain in ("full", "0,0,2", "2,1,0", "1")}
    wrong: list[str] = []

    def ask(chain: str) -> None:
        body = {"inputs": [_binary()], "parameters": {"chain": chain, "binary_data_output": True}}
        _, rest = _answer(_infer(server, "tinymlp", body, ROWS.tobytes()))
        if not np.allclose(np.frombuffer(rest, "<f4").reshape(3, 4), expected[chain], atol=1e-5):
            wrong.append(chain)

    threads = [threading.Thread(target=ask, args=(chain,)) for chain in expected for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_repository_is_listed_loaded_and_unloaded(serve: Any) -> None:
    with serve() as server:
        index, models = "/v2/repository/index", "/v2/repository/models"
        ready = {"version": "1", "state": "READY", "reason": ""}
        listed = [{"name": "tinylm", **ready}, {"name": "tinymlp", **ready}]
        assert server.client.post(index).json() == server.post(index, ready=True).json() == listed
        assert server.post(f"{models}/tinylm/unload", parameters={"unload_dependents": False}).status_code == 200
        left, _ = server.client.post(index).json()
        assert (left["state"], left["reason"]) == ("UNAVAILABLE", "available")
        assert [one["name"] for one in server.post(index, ready=True).json()] == ["tinymlp"]
        response = server.client.get("/v2/models/tinylm/ready")
        assert response.status_code == 503
        assert "tinylm" in response.json()["error"]
        assert "retry-after" in response.headers
        assert server.client.post(f"{models}/tinylm/load").status_code == 200
        assert server.client.get("/v2/models/tinylm/ready").status_code == 200


def test_statistics_count_what_was_answered(serve: Any) -> None:
    with serve() as server:
        for _ in range(2):
            _answer(_infer(server, "tinymlp", {"inputs": [_binary()]}, ROWS.tobytes()))
        (told,) = server.client.get("/v2/models/tinymlp/versions/1/stats").json()["model_stats"]
        assert (told["name"], told["version"], told["inference_count"]) == ("tinymlp", "1", 6)
        durations = told["inference_stats"]
        assert {one["count"] for one in durations.values()} == {2}
        assert durations["success"]["ns"] == durations["queue"]["ns"] + durations["compute_infer"]["ns"] > 0
        everything = server.client.get("/v2/models/stats").json()["model_stats"]
        assert [one["inference_count"] for one in everything] == [0, 6]
        assert told in everything


def test_remembered_chains_can_be_asked_for(server: Any) -> None:
    body = {"inputs": [_binary()], "parameters": {"chain": "memory"}}
    told, _ = _answer(_infer(server, "tinymlp", body, ROWS.tobytes()))
    assert told["parameters"]["chain"] == "0-2"
    told = server.post("/v2/models/tinylm/generate", text_input="1+1=", parameters={"chain": "memory"}).json()
    assert told["parameters"]["chain"] == "0-2"
