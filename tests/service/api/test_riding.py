"""Chain and depth ride along in every dialect, and every response says which chain ran."""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
import tritonclient.grpc as triton

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
FEATURES = {"name": "features", "shape": [1, 6], "datatype": "FP32"}
Ask: TypeAlias = Callable[[Any, dict[str, Any]], str]


@pytest.fixture(scope="module")
def server(serve: Any) -> Iterator[Any]:
    with serve(grpc_port=0) as served:
        yield served


def _said(server: Any, path: str, **body: Any) -> Any:
    response = server.post(path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def _joined(layers: list[int]) -> str:
    return ",".join(map(str, layers))


def _generate_stream(server: Any, riding: dict[str, Any]) -> str:
    body = {"text_input": "1+1=", "parameters": riding}
    *_, last = server.post("/v2/models/tinylm/generate_stream", **body).text.strip().split("\n\n")
    return str(json.loads(last.removeprefix("data: "))["parameters"]["chain"])


def _binary(server: Any, riding: dict[str, Any]) -> str:
    raw = np.array([ROW], "<f4").tobytes()
    features = {**FEATURES, "parameters": {"binary_data_size": len(raw)}}
    document = json.dumps({"inputs": [features], "parameters": {**riding, "binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(document))}
    response = server.client.post("/v2/models/tinymlp/infer", content=document + raw, headers=headers)
    size = int(response.headers["inference-header-content-length"])
    return str(json.loads(response.content[:size])["parameters"]["chain"])


def _grpc(server: Any, riding: dict[str, Any]) -> str:
    tensor = triton.InferInput("features", [1, 6], "FP32")
    tensor.set_data_from_numpy(np.array([ROW], np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{server.app.state.rpc.port}") as client:
        found = client.infer("tinymlp", [tensor], parameters=riding)
    return str(found.get_response().parameters["chain"].string_param)


def _openai(path: str, **body: Any) -> Ask:
    def ask(server: Any, riding: dict[str, Any]) -> str:
        answer = _said(server, path, model="tinylm", **body, **riding)
        (one,) = answer.get("choices") or answer["data"]
        return _joined(one["fathom"]["chain"])

    return ask


ASKS: dict[str, Ask] = {
    "predict rows": lambda server, riding: _joined(
        _said(server, "/predict", model="tinymlp", inputs=[ROW], **riding)["outputs"][0]["chain"]
    ),
    "predict texts": lambda server, riding: _joined(
        _said(server, "/predict", model="tinylm", inputs=["1+1="], **riding)["outputs"][0]["chain"]
    ),
    "predict scores": lambda server, riding: _joined(
        _said(
            server,
            "/predict",
            model="tinylm",
            inputs=["1+1="],
            targets=["2"],
            parameters={"mode": "score"},
            **riding,
        )["outputs"][0]["chain"]
    ),
    "kserve": lambda server, riding: _said(server, "/v1/models/tinymlp:predict", instances=[ROW], **riding)[
        "parameters"
    ]["chain"],
    "v2": lambda server, riding: _said(
        server, "/v2/models/tinymlp/infer", inputs=[{**FEATURES, "data": ROW}], parameters=riding
    )["parameters"]["chain"],
    "v2 binary": _binary,
    "generate": lambda server, riding: _said(
        server, "/v2/models/tinylm/generate", text_input="1+1=", parameters=riding
    )["parameters"]["chain"],
    "generate_stream": _generate_stream,
    "completions": _openai("/v1/completions", prompt="1+1="),
    "embeddings": _openai("/v1/embeddings", input="1+1="),
    "grpc": _grpc,
}


@pytest.mark.parametrize("dialect", ASKS)
@pytest.mark.parametrize(
    ("riding", "chain"),
    [({"chain": "2,0,0"}, "2,0,0"), ({"depth": 2}, "0,2"), ({"depth": 0.5}, "0"), ({"chain": "memory"}, "0,1,2")],
)
def test_what_rides_along_is_what_ran(server: Any, dialect: str, riding: dict[str, Any], chain: str) -> None:
    assert ASKS[dialect](server, riding).replace("0-2", "0,1,2") == chain
