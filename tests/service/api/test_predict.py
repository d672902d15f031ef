"""POST /predict: generation, scoring and tensors, along any chain."""

import json
import math
import threading
import time
from typing import Any

import pytest

FULL = [0, 1, 2]
ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


def _texts(answer: Any) -> list[list[int]]:
    return [output["token_ids"] for output in answer["outputs"]]


def test_full_chain_is_the_default(server: Any) -> None:
    answer = server.predict("tinylm", ["12+7="])
    (output,) = answer["outputs"]
    assert answer["model"] == "tinylm"
    assert answer["version"] == "1"
    assert output["chain"] == FULL
    assert output["finish_reason"] in ("stop", "length")
    assert output["layers_executed"] == output["layers_full"] == 3 * len(output["token_ids"])
    assert output["logprob"] <= 0
    assert _texts(server.predict("tinylm", ["12+7="], chain="full")) == [output["token_ids"]]
    assert _texts(server.predict("tinylm", ["12+7="], chain=FULL, version="1")) == [output["token_ids"]]


def test_chain_can_be_text_or_list_or_one_per_input(server: Any) -> None:
    prompts = ["12+7=", "3-1=", "12+7="]
    chains = ["0,0,2", [1, 2], "full"]
    alone = [server.predict("tinylm", [prompt], chain=chain) for prompt, chain in zip(prompts, chains, strict=True)]
    together = server.predict("tinylm", prompts, chain=chains)
    assert [output["chain"] for output in together["outputs"]] == [[0, 0, 2], [1, 2], FULL]
    assert _texts(together) == [ids for answer in alone for ids in _texts(answer)]
    assert len({tuple(ids) for ids in _texts(together)}) == 3


def test_usage_counts_tokens_and_layer_evaluations(server: Any) -> None:
    answer = server.predict("tinylm", ["12+7=", "3-1="], chain=["0,0,2", "1"], parameters={"max_new_tokens": 4})
    lengths = [len(ids) for ids in _texts(answer)]
    assert answer["usage"] == {
        "prompt_tokens": 5 + 4,
        "completion_tokens": sum(lengths),
        # The last token of an answer is never read again.
        "layer_evaluations": 3 * (5 + lengths[0] - 1) + 1 * (4 + lengths[1] - 1),
    }
    assert [output["layers_executed"] for output in answer["outputs"]] == [3 * lengths[0], 1 * lengths[1]]
    assert answer["timing"]["queue_ms"] >= 0
    assert answer["timing"]["compute_ms"] > 0


def test_beginning_that_was_read_before_is_not_read_again_and_the_counters_say_so(serve: Any) -> None:
    prompt, tokens = "12+34+56+78+90+12+34=", 21
    with serve(backend="onnx", kv_page_tokens=8) as server:
        for chain, evaluated, cached in (
            (FULL, tokens, 0),
            (FULL, 5, 16),
            ([0, 1], 5, 16),
            ([0, 1, 2, 2], tokens, 0),
        ):
            before = server.metric("fathom_layer_evaluations_total", model="tinylm")
            answer = server.predict("tinylm", [prompt], chain=chain, parameters={"max_new_tokens": 1})
            spent = answer["usage"]["layer_evaluations"]
            assert (answer["usage"].get("cached_tokens", 0), spent) == (cached, len(chain) * evaluated)
            assert server.metric("fathom_layer_evaluations_total", model="tinylm") - before == spent
        assert server.metric("fathom_prefix_cache_hit_tokens_total", model="tinylm") == 16 + 16
        assert server.metric("fathom_kv_pages_used", model="tinylm") == 0
        # Two columns of every visit of the full chain, and of the last visit of the last, which shared the others.
        assert server.metric("fathom_kv_pages_cached", model="tinylm") == 2 * (3 + 1)
        answer = server.post("/v1/completions", model="tinylm", prompt=prompt, max_tokens=1).json()
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


def test_token_ids_are_as_good_as_text(server: Any) -> None:
    scored = server.predict("tinylm", ["1+1="], parameters={"mode": "score"}, targets=["12+7="])
    ids = scored["outputs"][0]["token_ids"][:-1]
    assert _texts(server.predict("tinylm", [ids])) == _texts(server.predict("tinylm", ["12+7="]))


def test_generation_stops_at_max_new_tokens_or_a_stop_text(server: Any) -> None:
    whole = server.predict("tinylm", ["12+7="], parameters={"max_new_tokens": 8})["outputs"][0]
    short = server.predict("tinylm", ["12+7="], parameters={"max_new_tokens": 2})["outputs"][0]
    assert short["token_ids"] == whole["token_ids"][:2]
    assert short["finish_reason"] == "length"
    stopped = server.predict("tinylm", ["12+7="], parameters={"stop": [whole["text"][1]]})["outputs"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == whole["text"].partition(whole["text"][1])[0]


def test_generation_ends_where_the_model_ends(server: Any) -> None:
    prompt = "1" * 60
    (output,) = server.predict("tinylm", [prompt], parameters={"max_new_tokens": 1000})["outputs"]
    assert output["finish_reason"] == "stop" or len(output["token_ids"]) == 4


def test_same_seed_draws_the_same_text(server: Any) -> None:
    def draw(seed: int, prompts: list[str]) -> list[list[int]]:
        return _texts(server.predict("tinylm", prompts, parameters={"temperature": 5, "top_p": 0.9, "seed": seed}))

    assert draw(1, ["12+7="]) == draw(1, ["12+7=", "4+4="])[:1]
    assert len({tuple(draw(seed, ["12+7="])[0]) for seed in range(8)}) > 1


def test_logprobs_come_with_alternatives(server: Any) -> None:
    (output,) = server.predict("tinylm", ["12+7="], parameters={"logprobs": 3, "max_new_tokens": 2})["outputs"]
    assert [token["token_id"] for token in output["logprobs"]] == output["token_ids"]
    assert math.isclose(sum(token["logprob"] for token in output["logprobs"]), output["logprob"])
    for token in output["logprobs"]:
        assert len(token["top"]) == 3
        assert token["top"][0]["token_id"] == token["token_id"]
    assert "logprobs" not in server.predict("tinylm", ["12+7="])["outputs"][0]


@pytest.mark.parametrize("chain", ["full", "0,0,2"])
def test_score_agrees_with_generation(server: Any, chain: str) -> None:
    (said,) = server.predict("tinylm", ["12+7="], chain=chain, parameters={"max_new_tokens": 4})["outputs"]
    (scored,) = server.predict("tinylm", ["12+7="], chain=chain, parameters={"mode": "score"}, targets=[said["text"]])[
        "outputs"
    ]
    assert scored["text"] == said["text"]
    assert scored["matches"] == (said["finish_reason"] == "stop")
    assert scored["layers_executed"] == 3
    assert math.isclose(scored["logprob"], sum(scored["logprobs"]))
    (wrong,) = server.predict("tinylm", ["12+7="], parameters={"mode": "score"}, targets=["+-*"])["outputs"]
    assert not wrong["matches"]


def test_rows_run_along_their_own_chains(server: Any) -> None:
    rows = [ROW, ROW[::-1], ROW]
    together = server.predict("tinymlp", rows, chain=["full", "0,0", [2, 1]])
    alone = [
        server.predict("tinymlp", [row], chain=chain)["outputs"][0]
        for row, chain in zip(rows, ["full", "0,0", "2,1"], strict=True)
    ]
    for one, other in zip(together["outputs"], alone, strict=True):
        assert one["chain"] == other["chain"]
        assert one["outputs"]["logits"] == pytest.approx(other["outputs"]["logits"], abs=1e-5)
    assert together["usage"] == {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "layer_evaluations": 3 + 2 + 2,
    }


def test_named_tensors_are_as_good_as_rows(server: Any) -> None:
    tensor = {"shape": [2, 6], "datatype": "FP32", "data": ROW + ROW}
    named = server.predict("tinymlp", {"features": tensor})
    assert named["outputs"] == server.predict("tinymlp", [ROW, ROW])["outputs"]


def test_more_rows_than_one_batch_takes_are_split(server: Any) -> None:
    rows = [[float(number)] * 6 for number in range(150)]
    answer = server.predict("tinymlp", rows)
    assert len(answer["outputs"]) == 150
    for place in (0, 70, 149):
        (alone,) = server.predict("tinymlp", [rows[place]])["outputs"]
        assert answer["outputs"][place]["outputs"]["logits"] == pytest.approx(alone["outputs"]["logits"], abs=1e-5)


def test_concurrent_requests_answer_as_alone(server: Any) -> None:
    chains = ["full", "0,0,2", "2,1,0", "1"]
    requests = [(f"{number}+{number}=", chains[number % 4]) for number in range(40)]
    expected = {one: _texts(server.predict("tinylm", [one[0]], chain=one[1])) for one in requests}
    found = {}

    def ask(one: tuple[str, str]) -> None:
        found[one] = _texts(server.predict("tinylm", [one[0]], chain=one[1]))

    threads = [threading.Thread(target=ask, args=(one,)) for one in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def _stream(server: Any, path: str, **body: Any) -> list[tuple[str, Any]]:
    with server.client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return _events(response.read().decode())


def _events(text: str) -> list[tuple[str, Any]]:
    lines = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_stream_never_tells_a_stop_text(server: Any) -> None:
    whole = server.predict("tinylm", ["12+7="])["outputs"][0]["text"]
    body = {"model": "tinylm", "inputs": ["12+7="], "parameters": {"stop": [whole[2:4]]}}
    *tokens, (_, done) = _stream(server, "/predict", **body)
    (output,) = done["outputs"]
    assert output["text"] == whole.partition(whole[2:4])[0] == "".join(token["text"] for _, token in tokens)


def test_stream_gives_each_token_and_then_the_answer(server: Any) -> None:
    whole = server.predict("tinylm", ["12+7="], chain="0,0,2")["outputs"][0]
    *tokens, (last, done) = _stream(server, "/predict", model="tinylm", inputs=["12+7="], chain="0,0,2")
    assert [name for name, _ in tokens] == ["token"] * len(whole["token_ids"])
    assert [token["token_id"] for _, token in tokens] == whole["token_ids"]
    assert "".join(token["text"] for _, token in tokens) == whole["text"]
    assert last == "done"
    assert done["outputs"] == [whole]
    assert done["usage"]["completion_tokens"] == len(whole["token_ids"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "tinylm", "inputs": ["é"]}, 422),
        ({"model": "tinylm", "inputs": ["1"], "chain": "9"}, 422),
        ({"model": "tinylm", "inputs": ["1", "2"]}, 422),
        ({"model": "tinylm", "inputs": ["1" * 64]}, 413),
        ({"model": "tinymlp", "inputs": [ROW]}, 422),
        ({"model": "absent", "inputs": ["1"]}, 404),
    ],
)
def test_what_fails_before_the_first_event_is_a_plain_problem(
    server: Any, problem: Any, body: dict[str, Any], status: int
) -> None:
    problem(server.post("/predict", **body, stream=True), status)
    server.predict("tinylm", ["1+1="])


def test_client_that_leaves_a_stream_frees_its_slots(serve: Any) -> None:
    with serve(backend="onnx", num_threads=1) as server:
        others = [threading.Thread(target=server.predict, args=("tinylm", ["4+4="])) for _ in range(4)]
        body = {"model": "tinylm", "inputs": ["12+7="], "chain": [0, 1, 2] * 4, "stream": True}
        for number in range(20):
            with server.client.stream("POST", "/predict", json=body) as response:
                next(response.iter_raw())
            if number < len(others):
                others[number].start()
        for thread in others:
            thread.join()
        _wait_until(lambda: server.metric("fathom_running_sequences") == server.metric("fathom_kv_pages_used") == 0)
        server.predict("tinylm", ["1+1="])


def _wait_until(holds: Any) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
