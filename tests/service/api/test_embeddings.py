"""Embeddings by POST /v1/embeddings and by mode `embed` of POST /predict: one and the same."""

import base64
from typing import Any

import numpy as np
import pytest

EMBED = {"parameters": {"mode": "embed"}}


def _embed(server: Any, inputs: Any, **fields: Any) -> Any:
    response = server.post("/v1/embeddings", model="tinylm", input=inputs, **fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("fields", [{}, {"chain": "0,0,2"}, {"chain": [[1, 2], "full"]}, {"depth": 0.7}])
def test_both_ways_give_the_same_vectors(server: Any, fields: dict[str, Any]) -> None:
    texts = ["12+7=", "3"]
    answer, predicted = _embed(server, texts, **fields), server.predict("tinylm", texts, **EMBED, **fields)
    assert answer["object"] == "list"
    assert answer["model"] == "tinylm"
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert predicted["usage"]["prompt_tokens"] == 6
    executed = 0
    for place, (one, wanted) in enumerate(zip(answer["data"], predicted["outputs"], strict=True)):
        assert (one["object"], one["index"]) == ("embedding", place)
        assert one["embedding"] == pytest.approx(wanted["embedding"], abs=1e-6)
        assert np.linalg.norm(one["embedding"]) == pytest.approx(1.0, abs=1e-5)
        cost = {name: wanted[name] for name in ("chain", "layers_executed", "layers_full")}
        assert one["fathom"] == {"version": "1", **cost}
        assert cost["layers_executed"] == len(cost["chain"])
        executed += len(cost["chain"]) * (5, 1)[place]
    assert predicted["usage"]["layer_evaluations"] == executed


def test_base64_is_the_same_numbers(server: Any) -> None:
    numbers = _embed(server, "12+7=")["data"][0]["embedding"]
    coded = _embed(server, "12+7=", encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == pytest.approx(numbers, abs=1e-7)
    assert _embed(server, "12+7=", dimensions=len(numbers))["data"][0]["embedding"] == pytest.approx(numbers)


def test_inputs_are_texts_or_token_ids_of_any_length_that_fits(server: Any) -> None:
    scored = server.predict("tinylm", ["1"], parameters={"mode": "score"}, targets=["12+7="])
    ids = scored["outputs"][0]["token_ids"][:-1]
    wanted = _embed(server, "12+7=")["data"][0]["embedding"]
    for inputs in (ids, [ids], ["12+7="]):
        assert _embed(server, inputs)["data"][0]["embedding"] == pytest.approx(wanted, abs=1e-6)
    assert _embed(server, "1" * 64)["usage"]["prompt_tokens"] == 64


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "absent"}, 404, ("absent",)),
        ({"model": "tinymlp"}, 404, ("tinymlp",)),
        ({"input": []}, 400, ("empty",)),
        ({"input": ["1", ""]}, 400, ("empty",)),
        ({"input": "\u00e9"}, 400, ("alphabet",)),
        ({"input": "1" * 65}, 413, ("65 tokens", "at most 64")),
        ({"input": ["1"] * 4097}, 413, ("4097", "4096")),
        ({"dimensions": 7}, 400, ("dimensions is 7",)),
        ({"encoding_format": "hex"}, 400, ("encoding_format",)),
        ({"chain": "0,3"}, 400, ("layer 3",)),
        ({"depth": 2, "chain": "0"}, 400, ("depth", "Not with chain")),
        ({"temperature": 1}, 400, ("temperature", "no such field")),
    ],
)
def test_bad_input_is_refused_in_openai_words(
    server: Any, fields: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    response = server.post("/v1/embeddings", **{"model": "tinylm", "input": "1", **fields})
    assert response.status_code == status, response.text
    for word in words:
        assert word in response.json()["error"]["message"]


def test_mode_embed_goes_with_texts_alone(server: Any, problem: Any) -> None:
    problem(server.post("/predict", model="tinymlp", inputs=[[1.0] * 6], **EMBED), 422, "embed")
    problem(server.post("/predict", model="tinylm", inputs=["1"], targets=["2"], **EMBED), 422, "targets")
    problem(server.post("/predict", model="tinylm", inputs=["1"], stream=True, **EMBED), 422, "streamed")


def test_depth_is_a_static_chain(server: Any, problem: Any) -> None:
    for depth, chain in ((1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (0.5, [0]), (0.99, [0, 2]), (1.0, [0, 1, 2])):
        (row,) = server.predict("tinymlp", [[1.0] * 6], depth=depth)["outputs"]
        (text,) = server.predict("tinylm", ["1+1="], depth=depth)["outputs"]
        assert row["chain"] == text["chain"] == chain
    for depth in (0, 4, 1.5, -1, 0.0):
        problem(server.post("/predict", model="tinymlp", inputs=[[1.0] * 6], depth=depth), 422, f"depth {depth}")
    for depth in ("2", True, [1]):
        problem(server.post("/predict", model="tinymlp", inputs=[[1.0] * 6], depth=depth), 422, "depth", "number")
    problem(server.post("/predict", model="tinymlp", inputs=[[1.0] * 6], depth=2, chain="0"), 422, "depth", "chain")
