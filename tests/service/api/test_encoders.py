"""Text encoders over HTTP: answers by task, chains, limits of length, and the other dialects."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.export import export_checkpoint
from service.api.schemas import EmbeddingOutput, FillsOutput, LabelOutput, PredictResponse, TokensOutput
from service.loaded import load
from tests.contracts.encoders import ENCODERS, make, make_sentence

# Each task on an architecture of its own.
MODELS = {"classify": "bert-classify", "tokens": "distilbert-tokens", "fill-mask": "roberta-fill-mask"}
LABELS = {"calm", "glad", "sad", "wild"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoints, repository = tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("repository")
    make_sentence(checkpoints / "embed")
    for task, name in MODELS.items():
        make(next(one for one in ENCODERS if str(one) == name), checkpoints / task)
    for task in ("embed", *MODELS):
        assert not export_checkpoint(checkpoints / task, repository, ["safetensors"]).refused
    return repository


@pytest.fixture(scope="module")
def server(serve: Any, encoders: Path) -> Iterator[Any]:
    with serve(repository=encoders, backend="eager", response_cache_bytes=1 << 20) as served:
        yield served


def test_embeddings_of_texts_pairs_and_ids(server: Any) -> None:
    answer = server.predict("embed", ["w5 w6", ["w5", "w6"], [2, 5, 6, 3]])
    text, pair, ids = answer["outputs"]
    assert np.linalg.norm(text["embedding"]) == pytest.approx(1.0, abs=1e-5)
    assert len(text["embedding"]) == 24
    assert ids["embedding"] == pytest.approx(text["embedding"], abs=1e-6)  # w5 is token 5, between 2 and 3
    assert max(abs(a - b) for a, b in zip(pair["embedding"], text["embedding"], strict=True)) > 1e-3
    assert answer["usage"] == {"prompt_tokens": 4 + 5 + 4, "completion_tokens": 0, "layer_evaluations": 3 * 13}
    assert (text["chain"], text["layers_executed"], text["layers_full"]) == ([0, 1, 2], 3, 3)


@pytest.mark.parametrize(
    ("model", "output"),
    [("embed", EmbeddingOutput), ("classify", LabelOutput), ("tokens", TokensOutput), ("fill-mask", FillsOutput)],
)
def test_answers_are_as_they_are_described(model: str, output: type[Any], server: Any) -> None:
    answer = server.predict(model, ["w5 [MASK]", "w6 [MASK]"], chain=["full", "0"])
    read = PredictResponse.model_validate(answer)
    assert {type(one) for one in read.outputs} == {output}
    assert read.model_dump(exclude_none=True) == answer


def test_chain_and_depth_are_each_inputs_own(server: Any) -> None:
    before = server.metric("fathom_layers_answered_total", model="embed")
    texts, chains = ["w9 w10", "w11", "w12 w13 w14"], ["full", "0,2,2", [1]]
    together = server.predict("embed", texts, chain=chains)["outputs"]
    assert server.metric("fathom_layers_answered_total", model="embed") == before + 3 + 3 + 1
    assert [one["chain"] for one in together] == [[0, 1, 2], [0, 2, 2], [1]]
    for text, chain, one in zip(texts, chains, together, strict=True):
        (alone,) = server.predict("embed", [text], chain=chain)["outputs"]
        assert alone["embedding"] == pytest.approx(one["embedding"], abs=1e-5)
    assert server.predict("embed", ["w9"], depth=2)["outputs"][0]["chain"] == [0, 2]


def test_prompts_come_before_texts(server: Any, problem: Any) -> None:
    (asked,) = server.predict("embed", ["w5"], parameters={"prompt": "query"})["outputs"]
    (written,) = server.predict("embed", ["w7 w8 w5"])["outputs"]
    assert asked["embedding"] == pytest.approx(written["embedding"], abs=1e-6)
    response = server.post("/predict", model="embed", inputs=["w5"], parameters={"prompt": "answer"})
    problem(response, 422, "'answer'", "query")


def test_long_texts_are_refused_or_cut_when_asked(server: Any, problem: Any) -> None:
    text, kept = " ".join(["w20"] * 30), " ".join(["w20"] * 22)
    problem(server.post("/predict", model="embed", inputs=["w5", text]), 413, "32 tokens", "24", "truncate")
    (cut,) = server.predict("embed", [text], parameters={"truncate": True})["outputs"]
    (whole,) = server.predict("embed", [kept], parameters={"truncate": True})["outputs"]
    assert cut["truncated"] is True
    assert "truncated" not in whole
    assert cut["embedding"] == pytest.approx(whole["embedding"], abs=1e-6)
    problem(server.post("/predict", model="embed", inputs=[[5] * 25]), 413, "25 tokens", "24")


def test_classifiers_answer_with_labels(server: Any) -> None:
    (one,) = server.predict("classify", [["w5 w6", "w7"]])["outputs"]
    assert set(one["scores"]) == LABELS
    assert sum(one["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert one["score"] == max(one["scores"].values()) == one["scores"][one["label"]]


def test_tokens_are_labelled_where_they_stand(server: Any, problem: Any) -> None:
    text = "w5, w60 \u00e9t\u00e9"
    (one,) = server.predict("tokens", [text])["outputs"]
    assert [token["text"] for token in one["tokens"]] == ["w5", ",", "w60", "\u00e9t\u00e9"]
    assert all(text[token["start"] : token["end"]] == token["text"] for token in one["tokens"])
    assert {token["label"] for token in one["tokens"]} <= LABELS
    (ids,) = server.predict("tokens", [[2, 5, 3]])["outputs"]
    assert [token["text"] for token in ids["tokens"]] == ["[CLS]", "w5", "[SEP]"]
    problem(server.post("/predict", model="tokens", inputs=[["w5", "w6"]]), 422, "pair")


def test_masks_are_filled(server: Any, problem: Any) -> None:
    texts = ["w5 [MASK] w6 [MASK]", "[MASK] w8"]
    several, single = server.predict("fill-mask", texts, parameters={"top_k": 3})["outputs"]
    assert [len(fill) for fill in several["fills"]] == [3, 3]
    assert len(single["fills"]) == 1
    for fill in several["fills"]:
        scores = [one["score"] for one in fill]
        assert scores == sorted(scores, reverse=True)
        assert all(one["text"] for one in fill)
    (alone,) = server.predict("fill-mask", texts[1:])["outputs"]
    assert len(alone["fills"][0]) == 5
    assert [one["token_id"] for one in alone["fills"][0][:3]] == [one["token_id"] for one in single["fills"][0]]
    problem(server.post("/predict", model="fill-mask", inputs=["w5"]), 422, "[MASK]")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inputs": [7]}, ("input 0", "pair")),
        ({"inputs": ["w5", ["w5", 6]]}, ("input 1",)),
        ({"inputs": [[5, 99]]}, ("token 1", "99", "98")),
        ({"inputs": [[]]}, ("empty",)),
        ({"inputs": {"token_ids": [[1]]}}, ("list of texts",)),
        ({"inputs": ["w5"], "parameters": {"temperature": 1.0}}, ("temperature",)),
        ({"inputs": ["w5"], "parameters": {"mode": "score"}, "targets": ["w6"]}, ("embed",)),
        ({"inputs": ["w5"], "chain": "0,3"}, ("layer 3",)),
        ({"inputs": ["w5"], "stream": True}, ("streamed",)),
    ],
    ids=str,
)
def test_garbage_is_refused_by_name(fields: dict[str, Any], words: tuple[str, ...], server: Any, problem: Any) -> None:
    problem(server.post("/predict", model="embed", **fields), 422, *words)


def test_the_same_text_twice_is_remembered(server: Any) -> None:
    first = server.predict("classify", ["w33 w34"], chain="0,1")
    again = server.predict("classify", ["w33 w34"], chain="0,1")
    assert again["cached"] == 1
    assert again["outputs"][0]["scores"] == first["outputs"][0]["scores"]
    assert again["outputs"][0]["layers_executed"] == 0


def test_openai_clients_get_embeddings(server: Any) -> None:
    response = server.post(
        "/v1/embeddings", model="embed", input=["w5 w6", "w7"], encoding_format="base64", chain="0,2"
    )
    assert response.status_code == 200, response.text
    answer, wanted = response.json(), server.predict("embed", ["w5 w6", "w7"], chain="0,2")["outputs"]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    for one, same in zip(answer["data"], wanted, strict=True):
        assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() == pytest.approx(same["embedding"])
        assert one["fathom"]["chain"] == [0, 2]
    listed = [one["id"] for one in server.client.get("/v1/models").json()["data"]]
    assert listed == ["embed"]
    refused = server.post("/v1/embeddings", model="classify", input="w5")
    assert (refused.status_code, "embeds no text" in refused.json()["error"]["message"]) == (404, True)
    assert server.post("/v1/embeddings", model="embed", input="w5", dimensions=7).status_code == 400
    long = server.post("/v1/embeddings", model="embed", input="w5 " * 40)
    assert long.status_code == 413
    assert server.post("/v1/embeddings", model="embed", input="w5 " * 40, truncate=True).status_code == 200


def test_open_inference_clients_get_numbers(server: Any) -> None:
    told = server.client.get("/v2/models/embed").json()
    assert told["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
    assert told["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 24]}]
    given = [{"name": "text_input", "datatype": "BYTES", "shape": [2], "data": ["w5 w6", "w7"]}]
    for model, field in (("embed", "embedding"), ("classify", "scores")):
        answer = server.post(f"/v2/models/{model}/infer", inputs=given, parameters={"chain": "0,2"}).json()
        (output,) = answer["outputs"]
        wanted = [one[field] for one in server.predict(model, ["w5 w6", "w7"], chain="0,2")["outputs"]]
        rows = [list(one.values()) if isinstance(one, dict) else one for one in wanted]
        assert (output["name"], output["shape"]) == (field, [2, len(rows[0])])
        assert output["data"] == pytest.approx([number for row in rows for number in row], abs=1e-6)
        assert answer["parameters"]["chain"] == "0,2"
    (output,) = server.post("/v2/models/tokens/infer", inputs=given).json()["outputs"]
    assert output["datatype"] == "BYTES"
    assert '"label"' in output["data"][0]
    foreign = server.post("/v2/models/embed/infer", inputs=given, parameters={"temperature": 1.0})
    assert (foreign.status_code, "temperature" in foreign.json()["error"]) == (422, True)


def test_kserve_clients_get_predictions(server: Any) -> None:
    answer = server.post("/v1/models/embed:predict", instances=["w5", ["w6", "w7"]]).json()
    assert [len(one) for one in answer["predictions"]] == [24, 24]
    answer = server.post("/v1/models/classify:predict", instances=["w5"], chain="0").json()
    assert answer["predictions"][0]["label"] in LABELS
    assert answer["parameters"]["chain"] == "0"


def test_searches_find_chains_for_labels(server: Any, problem: Any) -> None:
    budget = {"simulations": 60}
    found = server.post("/cola/search", model="classify", input="w5 w6", budget=budget, remember=True)
    assert found.status_code == 200, found.text
    full, best = found.json()["full"], found.json()["best"]
    assert (best["reward"], best["certified"]) == (1.0, True)
    assert best["text"] == full["text"]
    assert best["text"] in LABELS
    (remembered,) = server.predict("classify", ["w5 w6"], chain="memory")["outputs"]
    assert (remembered["chain"], remembered["label"]) == (best["chain"], best["text"])
    assert server.post("/cola/search", model="classify", input="w5", target="sad", budget=budget).status_code == 200
    problem(server.post("/cola/search", model="classify", input="w5", target="angry"), 422, "'angry'", "calm")
    problem(server.post("/cola/search", model="embed", input="w5"), 422, "search a classifier")


def test_models_of_other_kinds_take_no_prompt(serve: Any, problem: Any) -> None:
    with serve() as served:
        for model, one in (("tinylm", "1+1="), ("tinymlp", [1.0] * 6)):
            for said in ({"truncate": True}, {"prompt": "query"}):
                response = served.post("/predict", model=model, inputs=[one], parameters=said)
                problem(response, 422, next(iter(said)), "encoders")


def test_python_callers_get_arrays_and_what_is_said(encoders: Path) -> None:
    with load("embed", repository=encoders, backend="eager", dtype="bfloat16") as model:
        asked = model.predict(["w5", " ".join(["w9"] * 30)], prompt="query", truncate=True, chain=["full", "0,2"])
    assert asked.arrays["embedding"].shape == (2, 24)
    assert np.linalg.norm(asked.arrays["embedding"], axis=1) == pytest.approx(1.0, abs=0.02)
    assert asked.chains == ((0, 1, 2), (0, 2))
    with load("classify", repository=encoders, backend="eager") as model:
        (said,) = model.predict("w5 w6").said
    assert (said["label"] in LABELS, set(said["scores"])) == (True, LABELS)


def test_fake_encoders_keep_the_law_of_batches(serve: Any, encoders: Path) -> None:
    with serve(repository=encoders, backend="fake") as served:
        texts, chains = ["w5 w6 w7", "w8", "w9 w10"], ["full", "2,0", "1"]
        pairs = list(zip(texts, chains, strict=True))
        for model in ("classify", "tokens"):
            together = served.predict(model, texts, chain=chains)["outputs"]
            alone = [served.predict(model, [text], chain=chain)["outputs"][0] for text, chain in pairs]
            assert together == alone
