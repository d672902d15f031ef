"""KServe's first protocol: the answers of POST /predict as predictions, errors in KServe's shape."""

from typing import Any

import httpx
import pytest

ROWS = [[1.0, 0.0, 2.0, 0.5, 1.5, 3.0], [0.25] * 6]


def _predict(server: Any, model: str, instances: Any, **fields: Any) -> Any:
    response = server.post(f"/v1/models/{model}:predict", instances=instances, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def _refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    for word in words:
        assert word in response.json()["error"]


def test_models_of_both_kinds_are_ready_in_both_dialects_words(server: Any) -> None:
    for name in ("tinylm", "tinymlp"):
        told = server.client.get(f"/v1/models/{name}").json()
        assert (told["name"], told["ready"]) == (name, True)
        assert (told["id"], told["object"]) == (name, "model")
    assert server.client.get("/v1/models").json()["models"] == ["tinylm", "tinymlp"]
    assert server.client.get("/").json() == {"status": "alive"}


def test_model_that_is_not_loaded_is_not_ready(serve: Any) -> None:
    with serve() as server:
        server.client.post("/models/tinymlp/unload")
        assert server.client.get("/v1/models/tinymlp").status_code == 503
        _refused(server.post("/v1/models/tinymlp:predict", instances=ROWS), 503, "tinymlp", "/load")


@pytest.mark.parametrize("chain", ["full", "0,0,2", [[1, 2], "0"], [0]])
@pytest.mark.parametrize("named", [False, True])
def test_rows_are_answered_as_by_predict(server: Any, chain: Any, named: bool) -> None:
    outputs = server.predict("tinymlp", ROWS, chain=chain)["outputs"]
    answer = _predict(server, "tinymlp", [{"features": row} for row in ROWS] if named else ROWS, chain=chain)
    assert answer["predictions"] == [one["outputs"]["logits"] for one in outputs]
    assert answer["parameters"]["layers_executed"] == sum(one["layers_executed"] for one in outputs)
    assert (answer["model_name"], answer["model_version"]) == ("tinymlp", "1")


def test_texts_and_token_ids_are_continued(server: Any) -> None:
    parameters = {"max_new_tokens": 7, "temperature": 5, "seed": 3}
    for prompts in (["12+7=", "3-1="], [[3, 4, 5], [1]]):
        outputs = server.predict("tinylm", prompts, chain="0,2", parameters=parameters)["outputs"]
        answer = _predict(server, "tinylm", prompts, chain="0,2", parameters=parameters)
        assert answer["predictions"] == [one["text"] for one in outputs]
        assert answer["parameters"]["chain"] == "0,2"


def test_depth_chooses_layers(server: Any) -> None:
    assert _predict(server, "tinymlp", ROWS, depth=2)["parameters"]["chain"] == "0,2"
    assert _predict(server, "tinylm", ["1"], depth=0.5)["parameters"]["chain"] == "0"


@pytest.mark.parametrize(
    ("model", "body", "status", "words"),
    [
        ("absent", {"instances": ROWS}, 404, ("absent", "tinymlp/1")),
        ("tinymlp", {}, 422, ("instances", "required")),
        ("tinymlp", {"instances": []}, 422, ("instances", "at least 1")),
        ("tinymlp", {"instances": [[1.0] * 5]}, 422, ("dimension 1 is 5",)),
        ("tinymlp", {"instances": [{"features": [1.0] * 6}, {}]}, 422, ("instance 1", "features")),
        ("tinymlp", {"instances": [{"features": [1.0] * 6}, [1.0] * 6]}, 422, ("instance 1", "features")),
        ("tinymlp", {"instances": [{"other": [1.0] * 6}]}, 422, ("other", "features")),
        ("tinymlp", {"instances": ROWS, "parameters": {"seed": 1}}, 422, ("writes no text",)),
        ("tinymlp", {"instances": ROWS, "chain": "0,3"}, 422, ("layer 3",)),
        ("tinymlp", {"instances": ROWS, "depth": 4}, 422, ("depth 4", "1 to 3")),
        ("tinymlp", {"instances": ROWS, "depth": 1, "chain": "0"}, 422, ("depth", "Not with chain")),
        ("tinymlp", {"instances": [[0.0] * 6] * 4097}, 413, ("4097", "4096")),
        ("tinylm", {"instances": [{"text": "1"}]}, 422, ("instance 0", "text")),
        ("tinylm", {"instances": [["1"]]}, 422, ("token 0", "'1'")),
        ("tinylm", {"instances": ["1"], "temperature": 1}, 422, ("temperature", "no such field")),
    ],
)
def test_bad_input_is_refused_in_kserves_shape(
    server: Any, model: str, body: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    _refused(server.post(f"/v1/models/{model}:predict", **body), status, *words)


def test_other_verbs_of_a_model_are_refused_in_kserves_shape(server: Any) -> None:
    _refused(server.post("/v1/models/tinymlp:explain", instances=ROWS), 405, ":explain")
    _refused(server.client.get("/v1/models/tinymlp:predict"), 404, "tinymlp:predict")
    content = {"content": b"{", "headers": {"content-type": "application/json"}}
    _refused(server.client.post("/v1/models/tinymlp:predict", **content), 422, "no valid JSON")
