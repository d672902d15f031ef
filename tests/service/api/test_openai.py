"""The OpenAI dialect: the answers of POST /predict in another shape, and every refusal in OpenAI's own."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from models.errors import UnavailableError
from service.api.openai.streaming import merged
from service.engine.language import LanguageEngine

LM = {"model": "tinylm", "prompt": "12+7="}
CHAT = {"model": "tinylm", "messages": [{"role": "user", "content": "1+1="}]}


def _complete(server: Any, **fields: Any) -> Any:
    """The answer to a completion that must succeed; greedy, where `/predict` is by default."""
    response = server.post("/v1/completions", **{**LM, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def _chunks(server: Any, **fields: Any) -> list[Any]:
    body = {**LM, "temperature": 0, "stream": True, **fields}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        text = response.read().decode()
        assert response.headers["content-type"].startswith("text/event-stream"), text
    *events, done = text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _pieces(chunks: list[Any], index: int) -> list[Any]:
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def _wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def _refused(response: httpx.Response, status: int, *words: str) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    return error


def test_models_are_the_language_models(server: Any) -> None:
    listed = server.client.get("/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert (model["id"], model["object"]) == ("tinylm", "model")
    assert model["fathom"] == {"version": "1", "num_layers": 3, "max_chain_length": 12}
    assert server.client.get("/v1/models/tinylm").json() == model
    assert _refused(server.client.get("/v1/models/absent"), 404, "absent")["code"] == "model_not_found"


@pytest.mark.parametrize("chain", ["full", "0,0,2", [1, 2]])
@pytest.mark.parametrize("temperature", [0, 5])
def test_completion_is_what_predict_answers(server: Any, chain: Any, temperature: float) -> None:
    drawn = {"temperature": temperature, "top_p": 0.9, "top_k": 7, "seed": 7}
    answer = _complete(server, chain=chain, max_tokens=9, **drawn)
    predicted = server.predict("tinylm", ["12+7="], chain=chain, parameters={"max_new_tokens": 9, **drawn})
    (choice,), (output,) = answer["choices"], predicted["outputs"]
    assert choice["text"] == output["text"]
    assert choice["finish_reason"] == output["finish_reason"]
    cost = {name: output[name] for name in ("chain", "layers_executed", "layers_full")}
    assert choice["fathom"] == {"version": "1", "seed": 7, **cost}
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": len(output["token_ids"]),
        "total_tokens": 5 + len(output["token_ids"]),
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "tinylm")


def test_answer_carries_the_request_id_and_the_time(server: Any) -> None:
    response = server.client.post("/v1/completions", json=LM, headers={"x-request-id": "asked.1"})
    assert response.json()["id"] == "cmpl-asked.1"
    assert abs(response.json()["created"] - time.time()) < 60


def test_prompts_are_texts_or_token_ids_one_or_several(server: Any) -> None:
    score = {"mode": "score"}
    ids = [
        server.predict("tinylm", ["1"], parameters=score, targets=[text])["outputs"][0]["token_ids"][:-1]
        for text in ("12+7=", "3-1=")
    ]
    alone = [_complete(server, prompt=text)["choices"][0]["text"] for text in ("12+7=", "3-1=")]
    for prompt in (["12+7=", "3-1="], ids):
        assert [choice["text"] for choice in _complete(server, prompt=prompt)["choices"]] == alone
    assert _complete(server, prompt=ids[0])["choices"][0]["text"] == alone[0]


def test_each_prompt_may_have_its_own_chain(server: Any) -> None:
    chains = ["0,0,2", [1, 2]]
    answer = _complete(server, prompt=["12+7=", "3-1="], chain=chains, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["fathom"]["chain"] for choice in answer["choices"]] == [[0, 0, 2]] * 2 + [[1, 2]] * 2
    predicted = server.predict("tinylm", ["12+7=", "3-1="], chain=chains, parameters={"max_new_tokens": 16})
    texts = [output["text"] for output in predicted["outputs"]]
    assert [choice["text"] for choice in answer["choices"]] == [texts[0]] * 2 + [texts[1]] * 2
    assert answer["usage"]["prompt_tokens"] == 5 + 4


def test_remembered_chain_is_used(server: Any) -> None:
    search = {"model": "tinylm", "input": "8-3=", "remember": True, "budget": {"simulations": 16}}
    found = server.post("/cola/search", **search, max_new_tokens=2).json()
    assert found["remembered"]
    answer = _complete(server, prompt=["8-3=", "8-4="], chain=["memory", "memory"], max_tokens=2)
    assert [choice["fathom"]["chain"] for choice in answer["choices"]] == [found["best"]["chain"], [0, 1, 2]]


def test_choices_repeat_with_the_seed_and_differ_from_each_other(server: Any) -> None:
    def draw(**fields: Any) -> list[Any]:
        return list(_complete(server, temperature=5, **fields)["choices"])

    first = draw(n=6, seed=3)
    assert draw(n=6, seed=3) == first
    assert draw(n=2, seed=3) == first[:2]
    assert draw(n=2, seed=3, prompt=["3-1=", "12+7="])[2:] == [{**one, "index": one["index"] + 2} for one in first[:2]]
    assert len({choice["text"] for choice in first}) > 1
    for choice in first:
        (alone,) = draw(seed=choice["fathom"]["seed"])
        assert alone == {**choice, "index": 0}


def test_without_a_seed_chance_decides_and_is_told(server: Any) -> None:
    answers = [_complete(server, temperature=5)["choices"][0] for _ in range(2)]
    seeds = [answer["fathom"]["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    assert _complete(server, temperature=5, seed=seeds[1])["choices"] == [answers[1]]


def test_greedy_choices_are_equal(server: Any) -> None:
    texts = [choice["text"] for choice in _complete(server, n=4)["choices"]]
    assert texts == [_complete(server)["choices"][0]["text"]] * 4


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_text_ends_and_is_left_out(server: Any, as_list: bool) -> None:
    whole = _complete(server)["choices"][0]["text"]
    stop = whole[1:3]
    (choice,) = _complete(server, stop=[stop, "\u00e9"] if as_list else stop)["choices"]
    assert choice["text"] == whole.partition(stop)[0]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("count", [0, 3])
def test_logprobs_are_those_of_predict(server: Any, count: int) -> None:
    (choice,) = _complete(server, logprobs=count, max_tokens=6)["choices"]
    (output,) = server.predict("tinylm", ["12+7="], parameters={"logprobs": count, "max_new_tokens": 6})["outputs"]
    told = choice["logprobs"]
    assert told["tokens"] == [token["token"] for token in output["logprobs"]]
    assert told["token_logprobs"] == [token["logprob"] for token in output["logprobs"]]
    for top, token in zip(told["top_logprobs"], output["logprobs"], strict=True):
        assert top == {one["token"]: one["logprob"] for one in [*token["top"], token]}
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token) or token in "_$"  # special tokens have no text
    assert _complete(server)["choices"][0]["logprobs"] is None


def test_echo_puts_the_prompt_first(server: Any) -> None:
    said = _complete(server)["choices"][0]["text"]
    assert _complete(server, echo=True)["choices"][0]["text"] == "12+7=" + said
    assert _complete(server, echo=True, stop="+")["choices"][0]["text"].startswith("12+7=")
    assert "".join(piece["text"] for piece in _pieces(_chunks(server, echo=True), 0)) == "12+7=" + said


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"chain": "0,0,2", "logprobs": 2},
        {"prompt": ["12+7=", "3-1="], "n": 2, "temperature": 5, "seed": 1, "logprobs": 0},
        {"n": 3, "stop": ["99", "1"], "temperature": 5, "seed": 4},
    ],
)
def test_stream_is_the_answer_in_pieces(server: Any, fields: dict[str, Any]) -> None:
    whole = _complete(server, **fields)
    *chunks, last = _chunks(server, **fields, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {(last["id"], last["created"])}
    for choice in whole["choices"]:
        *pieces, end = _pieces(chunks, choice["index"])
        assert "".join(piece["text"] for piece in [*pieces, end]) == choice["text"]
        assert (end["finish_reason"], end["fathom"]) == (choice["finish_reason"], choice["fathom"])
        assert {piece["finish_reason"] for piece in pieces} <= {None}
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_usage_is_streamed_only_when_asked_for(server: Any) -> None:
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in _chunks(server))


def test_stream_never_says_a_part_of_a_stop_text(server: Any) -> None:
    whole = _complete(server)["choices"][0]["text"]
    for start in range(len(whole) - 1):
        stop = whole[start : start + 2]
        pieces = _pieces(_chunks(server, stop=[stop]), 0)
        assert "".join(piece["text"] for piece in pieces) == whole.partition(stop)[0]


def test_merged_streams_end_together_when_one_fails_or_the_reader_leaves() -> None:
    async def count(place: int, fails_at: int, ended: list[int]) -> AsyncIterator[int]:
        try:
            for number in range(100):
                if number == fails_at:
                    raise ValueError(place)
                yield number
                await asyncio.sleep(0)
        finally:
            ended.append(place)

    async def read(fails_at: int, leaves_at: int) -> tuple[list[tuple[int, int]], list[int]]:
        seen: list[tuple[int, int]] = []
        ended: list[int] = []
        arriving = merged([count(0, -1, ended), count(1, fails_at, ended), count(2, -1, ended)])
        try:
            async for one in arriving:
                seen.append(one)
                if len(seen) == leaves_at:
                    break
        except ValueError:
            pass
        await arriving.aclose()
        await asyncio.sleep(0.01)
        return seen, ended

    seen, ended = asyncio.run(read(-1, -1))
    assert sorted(seen) == [(place, number) for place in range(3) for number in range(100)]
    for fails_at, leaves_at in ((5, -1), (-1, 9)):
        seen, ended = asyncio.run(read(fails_at, leaves_at))
        assert sorted(ended) == [0, 1, 2]
        assert len(seen) < 50


def test_client_that_leaves_a_stream_frees_its_sequences(serve: Any) -> None:
    with serve(backend="onnx", num_threads=1) as server:
        others = [threading.Thread(target=server.predict, args=("tinylm", ["4+4="])) for _ in range(4)]
        body = {**LM, "n": 4, "max_tokens": 1000, "chain": [0, 1, 2] * 4, "stream": True}
        for number in range(12):
            with server.client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_raw())
            if number < len(others):
                others[number].start()
        for thread in others:
            thread.join()
        _wait_until(lambda: server.metric("fathom_running_sequences") == server.metric("fathom_kv_pages_used") == 0)
        _complete(server)


def test_failure_after_the_first_byte_is_the_last_event(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LanguageEngine.stream

    async def breaks(*arguments: Any) -> AsyncIterator[Any]:
        async for one in whole(*arguments):
            yield one
            raise UnavailableError("the device is gone")

    monkeypatch.setattr(LanguageEngine, "stream", breaks)
    response = server.post("/v1/completions", **LM, n=2, seed=1, logprobs=0, stream=True)
    *_, last = response.text.removesuffix("\n\n").split("data: ")
    assert json.loads(last)["error"]["type"] == "server_error"
    assert "the device is gone" in json.loads(last)["error"]["message"]
    monkeypatch.undo()
    _complete(server)


def test_fields_without_effect_and_nulls_are_taken(server: Any) -> None:
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "suffix": "",
        "best_of": 1,
    }
    names = ("max_tokens", "stop", "n", "seed", "logprobs", "echo", "stream_options", "logit_bias", "suffix", "user")
    plain = _complete(server)["choices"]
    assert _complete(server, **harmless)["choices"][0]["text"] == plain[0]["text"]
    nulls = _complete(server, **dict.fromkeys(names))["choices"]
    assert nulls[0]["text"] == plain[0]["text"]


# What is wrong, the fields, the status, the field at fault, and what the message must say.
BAD: list[tuple[str, dict[str, Any], int, str | None, tuple[str, ...]]] = [
    ("unknown model", {"model": "absent"}, 404, None, ("absent", "tinylm/1")),
    ("unknown version", {"version": "9"}, 404, None, ("'9'", "tinylm/1")),
    ("no language model", {"model": "tinymlp"}, 404, None, ("tinymlp", "/predict")),
    ("no prompt", {"prompt": None}, 400, "prompt", ("required",)),
    ("empty prompt", {"prompt": ""}, 400, None, ("prompt is empty",)),
    ("no prompts", {"prompt": []}, 400, None, ("prompt is empty",)),
    ("one empty prompt", {"prompt": ["1", ""]}, 400, None, ("prompt is empty",)),
    ("empty token ids", {"prompt": [[]]}, 400, None, ("prompt is empty",)),
    ("prompt as a number", {"prompt": 5}, 400, "prompt", ("list of texts", "5 came")),
    ("mixed prompts", {"prompt": ["1", 2]}, 400, "prompt", ("list of texts",)),
    ("strange character", {"prompt": "\u00e9"}, 400, None, ("\u00e9", "alphabet")),
    ("strange character in echo", {"prompt": "\u00e9", "echo": True}, 400, None, ("\u00e9", "alphabet")),
    ("token out of range", {"prompt": [1, 99]}, 400, None, ("token 1", "99")),
    ("token out of range in echo", {"prompt": [1, -1], "echo": True}, 400, None, ("token 1", "-1")),
    ("long prompt", {"prompt": "1" * 64}, 413, None, ("64 tokens", "at most 63")),
    ("many choices", {"prompt": ["1"] * 40, "n": 128}, 413, None, ("40 prompts", "n 128", "4096")),
    ("layer out of range", {"chain": "0,3"}, 400, None, ("visit 1", "layer 3", "0 to 2")),
    ("deeper than the model", {"depth": 4}, 400, None, ("depth 4", "1 to 3 layers")),
    ("depth and chain", {"depth": 1, "chain": "0"}, 400, "depth", ("Not with chain",)),
    ("chain as a number", {"chain": 2}, 400, "chain", ("list of layers", "2 came")),
    ("too few chains", {"prompt": ["1", "2", "3"], "chain": ["0", "1"]}, 400, None, ("2 chains", "3 inputs")),
    ("too many stops", {"stop": ["1"] * 5}, 400, "stop", ("up to 4",)),
    ("empty stop", {"stop": ""}, 400, "stop", ("none of them empty",)),
    ("too many alternatives", {"logprobs": 6}, 400, "logprobs", ("5", "6 came")),
    ("no tokens", {"max_tokens": 0}, 400, "max_tokens", ("1", "0 came")),
    ("no choices", {"n": 0}, 400, "n", ("1", "0 came")),
    ("cold", {"temperature": 1e-9}, 400, "temperature", ("0.001", "1e-09 came")),
    ("negative seed", {"seed": -1}, 400, "seed", ("-1 came",)),
    ("number as text", {"n": "2"}, 400, "n", ("integer", "'2' came")),
    ("best of more", {"n": 2, "best_of": 3}, 400, "best_of", ("more than n", "3 came")),
    ("suffix", {"suffix": "!"}, 400, "suffix", ("Not served", "'!' came")),
    ("frequency_penalty", {"frequency_penalty": 0.5}, 400, "frequency_penalty", ("send 0", "0.5 came")),
    ("presence_penalty", {"presence_penalty": -1}, 400, "presence_penalty", ("send 0", "-1")),
    ("logit_bias", {"logit_bias": {"5": 1}}, 400, "logit_bias", ("send {}",)),
    ("tools", {"tools": []}, 400, "tools", ("no such field",)),
    ("response_format", {"response_format": {"type": "text"}}, 400, "response_format", ("no such field",)),
    ("echo with logprobs", {"echo": True, "logprobs": 1}, 400, "echo", ("logprobs", "score")),
    ("options without stream", {"stream_options": {}}, 400, "stream_options", ("stream true",)),
    ("unknown option", {"stream": True, "stream_options": {"a": 1}}, 400, "stream_options.a", ("no such field",)),
]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "param", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_is_refused_in_openai_words(
    server: Any, fields: dict[str, Any], status: int, param: str | None, words: tuple[str, ...], streams: bool
) -> None:
    stream = {"stream": True} if streams and "stream_options" not in fields else {}
    error = _refused(server.post("/v1/completions", **{**LM, **stream, **fields}), status, *words)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"] == {404: "model_not_found"}.get(status, error["code"])
    _complete(server, max_tokens=1)


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b'{"model": ', b'{"model": "\xff"}'])
def test_bytes_that_are_no_request_are_refused(server: Any, content: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = server.client.post(path, content=content, headers={"content-type": "application/json"})
        _refused(response, 400, "malformed")


def test_other_content_types_and_large_bodies_are_refused(server: Any) -> None:
    _refused(server.client.post("/v1/completions", content=b"{}"), 415, "application/json")
    headers = {"content-type": "application/json"}
    _refused(server.client.post("/v1/completions", content=b" " * (17 << 20), headers=headers), 413, "16777216")


def test_unknown_routes_are_refused_in_openai_words(server: Any) -> None:
    _refused(server.client.get("/v1/absent"), 404, "/v1/absent")
    response = server.client.get("/v1/completions")
    _refused(response, 405, "/v1/completions")
    assert response.headers["allow"] == "POST"


def test_chat_without_a_template_says_what_to_do(server: Any) -> None:
    body = {**CHAT, "tools": [], "temperature": 1}
    remedies = ("chat_template.jinja", "/v1/completions")
    _refused(server.post("/v1/chat/completions", **body), 400, "'tinylm' has no chat template", *remedies)
    _refused(server.post("/v1/chat/completions", **{**CHAT, "model": "absent"}), 404, "absent")
    assert _refused(server.post("/v1/chat/completions", model="tinylm"), 400)["param"] == "messages"


@pytest.mark.parametrize("fields", [{"prompt": ["1"] * 4}, {"n": 4}, {"n": 2, "prompt": ["1", "2"], "stream": True}])
def test_full_queue_says_when_to_come_back(serve: Any, fields: dict[str, Any]) -> None:
    with serve(max_queue_requests=4) as server, ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda _: server.post("/v1/completions", **{**LM, **fields}), range(96)))
        refused = [response for response in answers if response.status_code != 200]
        assert 0 < len(refused) < len(answers)
        for response in refused:
            error = _refused(response, 429, "limit of 4")
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert int(response.headers["retry-after"]) >= 1
        _wait_until(lambda: server.metric("fathom_running_sequences") == server.metric("fathom_queue_requests") == 0)
        _complete(server)


@pytest.mark.parametrize("fields", [{"prompt": ["1"] * 5}, {"n": 5}, {"n": 5, "stream": True}])
def test_request_that_no_queue_could_hold_is_too_large(serve: Any, fields: dict[str, Any]) -> None:
    with serve(max_queue_requests=4) as server:
        _refused(server.post("/v1/completions", **{**LM, **fields}), 413, "5", "at most 4 choices")
        _complete(server)


def test_unloaded_models_and_draining_servers_are_unavailable(serve: Any) -> None:
    with serve() as server:
        server.client.post("/models/tinylm/unload")
        assert server.client.get("/v1/models").json()["data"] == []
        unloaded = server.post("/v1/completions", **LM)
        server.app.state.lifecycle.is_draining = True
        for response in (unloaded, server.post("/v1/completions", **LM), server.client.get("/v1/models")):
            assert _refused(response, 503)["type"] == "server_error"
            assert response.headers["retry-after"]
