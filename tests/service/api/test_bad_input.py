"""Bad input is a problem document that names value, limit and remedy, and the server serves on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
LM = {"model": "tinylm", "inputs": ["1+1="]}
MLP = {"model": "tinymlp", "inputs": [ROW]}
SEARCH = {"model": "tinylm", "input": "1+1=", "budget": {"simulations": 8}}
CLASSIFY = {"model": "tinymlp", "input": ROW, "budget": {"simulations": 8}}


def _tensor(**members: Any) -> dict[str, Any]:
    return {"model": "tinymlp", "inputs": {"features": {"shape": [1, 6], "datatype": "FP32", "data": ROW, **members}}}


# What is wrong, the body, the status, and what the detail must say.
PREDICT: list[tuple[str, dict[str, Any], int, tuple[str, ...]]] = [
    ("layer out of range", {**LM, "chain": "0,3"}, 422, ("visit 1", "layer 3", "0 to 2")),
    ("negative layer", {**LM, "chain": [0, -1]}, 422, ("visit 1", "layer -1", "0 to 2")),
    ("empty chain", {**LM, "chain": []}, 422, ("empty", "full")),
    ("empty text chain", {**LM, "chain": ""}, 422, ("''", "0-3,5,5,7-11")),
    ("chain too long", {**LM, "chain": [0] * 13}, 422, ("13 visits", "at most 12")),
    ("chain run too long", {**LM, "chain": "0-99999999"}, 422, ("0-99999999", "10000", "shorten")),
    ("chain number too long", {**LM, "chain": "9" * 5000}, 422, ("0-3,5,5,7-11",)),
    ("chain with foreign digits", {**LM, "chain": "\u0663"}, 422, ("0-3,5,5,7-11",)),
    ("chain that runs down", {**LM, "chain": "2-0"}, 422, ("2-0", "one by one")),
    ("chain of words", {**LM, "chain": "all"}, 422, ("'all'", "0-3,5,5,7-11")),
    ("chain of fractions", {**LM, "chain": [0.5]}, 422, ("chain", "list of layers")),
    ("chain of truth values", {**LM, "chain": [True]}, 422, ("chain", "list of layers")),
    ("chain as a number", {**LM, "chain": 2}, 422, ("chain", "2 came")),
    ("chain as an object", {**LM, "chain": {"a": 1}}, 422, ("chain", "list of layers")),
    ("too few chains", {**LM, "chain": ["0", "1"]}, 422, ("2 chains", "1 inputs")),
    ("unknown field", {**LM, "chian": "0"}, 422, ("chian", "no such field")),
    ("unknown parameter", {**LM, "parameters": {"temprature": 1}}, 422, ("parameters.temprature", "no such field")),
    ("missing field", {"model": "tinylm"}, 422, ("inputs", "required")),
    ("number as text", {**LM, "parameters": {"max_new_tokens": "4"}}, 422, ("max_new_tokens", "integer", "'4'")),
    ("truth value as number", {**LM, "parameters": {"seed": True}}, 422, ("seed", "integer", "True")),
    ("nothing to generate", {**LM, "parameters": {"max_new_tokens": 0}}, 422, ("max_new_tokens", "1", "0 came")),
    ("huge number", {**LM, "parameters": {"max_new_tokens": 1e30}}, 422, ("max_new_tokens", "1e+30")),
    ("temperature below zero", {**LM, "parameters": {"temperature": -1}}, 422, ("temperature", "0", "-1 came")),
    ("temperature near zero", {**LM, "parameters": {"temperature": 1e-300}}, 422, ("temperature", "0.001")),
    ("top_p of zero", {**LM, "parameters": {"top_p": 0}}, 422, ("top_p", "0 came")),
    ("too many alternatives", {**LM, "parameters": {"logprobs": 21}}, 422, ("logprobs", "20", "21 came")),
    ("empty stop text", {**LM, "parameters": {"stop": [""]}}, 422, ("stop.0", "1 character")),
    ("unknown mode", {**LM, "parameters": {"mode": "sing"}}, 422, ("mode", "generate", "'sing'")),
    ("unknown model", {**LM, "model": "absent"}, 404, ("absent", "tinylm/1", "tinymlp/1")),
    ("unknown version", {**LM, "version": "9"}, 404, ("'9'", "tinylm/1")),
    ("version as a number", {**LM, "version": 1}, 422, ("version", "string")),
    ("no inputs", {**LM, "inputs": []}, 422, ("at least one",)),
    ("inputs as text", {**LM, "inputs": "1+1="}, 422, ("inputs", "list of texts", "'1+1='")),
    ("inputs by name", {**LM, "inputs": {"a": "1"}}, 422, ("list of texts",)),
    ("input as a number", {**LM, "inputs": ["1", 5]}, 422, ("input 1", "list of token ids")),
    ("token ids as text", {**LM, "inputs": [["1"]]}, 422, ("input 0", "list of token ids")),
    ("empty prompt", {**LM, "inputs": [""]}, 422, ("empty", "at least one")),
    ("no token ids", {**LM, "inputs": [[]]}, 422, ("empty", "at least one")),
    ("unknown token id", {**LM, "inputs": [[1, 99]]}, 422, ("token 1", "99", "0 to")),
    ("foreign character", {**LM, "inputs": ["1+\u00e9="]}, 422, ("\u00e9", "alphabet")),
    ("prompt too long", {**LM, "inputs": ["1" * 64]}, 413, ("64 tokens", "at most 63", "shorten")),
    ("too many inputs", {**LM, "inputs": ["1"] * 5000}, 413, ("5000", "4096", "several")),
    ("targets unasked", {**LM, "targets": ["2"]}, 422, ("mode", "score")),
    ("score without targets", {**LM, "parameters": {"mode": "score"}}, 422, ("0 targets", "1 inputs")),
    (
        "target without tokens for it",
        {**LM, "targets": ["\u00e9"], "parameters": {"mode": "score"}},
        422,
        ("\u00e9", "alphabet"),
    ),
    ("target too long", {**LM, "targets": ["1" * 99], "parameters": {"mode": "score"}}, 413, ("64", "shorten")),
    ("score streamed", {**LM, "targets": ["1"], "parameters": {"mode": "score"}, "stream": True}, 422, ("one text",)),
    ("row too short", {**MLP, "inputs": [ROW[:5]]}, 422, ("dimension 1", "5", "6")),
    ("flat row", {**MLP, "inputs": ROW}, 422, ("shape [6]", "6]")),
    ("ragged rows", {**MLP, "inputs": [ROW, ROW[:5]]}, 422, ("different lengths", "6]")),
    ("rows of text", {**MLP, "inputs": [["a"] * 6]}, 422, ("not FP32", "plain numbers")),
    ("one long text", {**MLP, "inputs": [["a" * 100_000, *[""] * 100_000]]}, 422, ("not FP32", "plain numbers")),
    ("rows of nothing", {**MLP, "inputs": [[None] * 6]}, 422, ("not FP32", "plain numbers")),
    ("rows of truth values", {**MLP, "inputs": [[True] * 6]}, 422, ("not FP32", "plain numbers")),
    ("number beyond float32", {**MLP, "inputs": [[1e39, *ROW[1:]]]}, 422, ("beyond FP32", "finite")),
    ("unknown input", {**MLP, "inputs": {"pixels": [ROW]}}, 422, ("pixels", "features")),
    ("wrong datatype", _tensor(datatype="INT64"), 422, ("INT64", "FP32")),
    ("shape that does not fit", _tensor(shape=[2, 6]), 422, ("6 values", "[2, 6]")),
    ("absurd shape", _tensor(shape=[1 << 63, 6]), 422, ("6 values", "9223372036854775808")),
    ("shape of words", _tensor(shape="six"), 422, ("6 values", "six")),
    ("wrong shape", _tensor(shape=[6, 1]), 422, ("dimension 1", "1", "6")),
    ("unknown tensor member", _tensor(strides=[1]), 422, ("strides", "nothing else")),
    ("tensor without data", _tensor(data=None), 422, ("data",)),
    ("classifier asked to score", {**MLP, "parameters": {"mode": "score"}}, 422, ("no text",)),
]
SEARCHES: list[tuple[str, dict[str, Any], int, tuple[str, ...]]] = [
    ("no input", {"model": "tinylm"}, 422, ("input",)),
    ("two inputs", {**SEARCH, "inputs": ["1"]}, 422, ("either",)),
    ("targets without inputs", {**SEARCH, "targets": ["1"]}, 422, ("'targets'", "'target'")),
    ("too few targets", {"model": "tinylm", "inputs": ["1", "2"], "targets": ["3"]}, 422, ("1 targets", "2 inputs")),
    ("input as a number", {**SEARCH, "input": 5}, 422, ("int", "text")),
    ("token ids as text", {**SEARCH, "input": ["1"]}, 422, ("token 0", "'1'")),
    ("token ids as fractions", {**SEARCH, "input": [1.5]}, 422, ("token 0", "1.5")),
    ("foreign character", {**SEARCH, "input": "\u00e9"}, 422, ("\u00e9", "alphabet")),
    ("prompt too long", {**SEARCH, "input": "1" * 64}, 413, ("64 tokens", "shorten")),
    ("target without tokens for it", {**SEARCH, "target": "\u00e9"}, 422, ("\u00e9", "alphabet")),
    ("target as a number", {**SEARCH, "target": 2}, 422, ("target 2", "text")),
    ("target as an object", {**SEARCH, "target": {"a": 1}}, 422, ("target", "text")),
    ("target of token texts", {**SEARCH, "target": ["2"]}, 422, ("'2'",)),
    ("target too long", {**SEARCH, "target": "1" * 99}, 413, ("100 tokens", "shorten")),
    ("unknown reward", {**SEARCH, "reward": "praise"}, 422, ("reward", "agreement", "'praise'")),
    ("reward without target", {**SEARCH, "reward": "target"}, 422, ("no target",)),
    ("no limit", {**SEARCH, "budget": {"simulations": None}}, 422, ("no limit", "seconds")),
    ("empty budget", {**SEARCH, "budget": {"simulations": 0}}, 422, ("simulations", "0 came")),
    ("endless budget", {**SEARCH, "budget": {"seconds": 1e9}}, 422, ("seconds", "3600")),
    ("too long chains", {**SEARCH, "space": {"max_length": 13}}, 422, ("13", "12")),
    ("no lengths", {**SEARCH, "space": {"min_length": 5, "max_length": 2}}, 422, ("5", "2")),
    ("no operations", {**SEARCH, "space": {"operations": []}}, 422, ("skip", "repeat")),
    ("unknown operation", {**SEARCH, "space": {"operations": ["swap"]}}, 422, ("'swap'", "skip")),
    ("no leaves", {**SEARCH, "mcts": {"leaf_batch": 0}}, 422, ("leaf_batch", "0 came")),
    ("unknown field", {**SEARCH, "simulations": 5}, 422, ("simulations", "no such field")),
    ("unknown model", {**SEARCH, "model": "absent"}, 404, ("absent", "tinylm/1")),
    ("streamed error", {**SEARCH, "input": "\u00e9", "stream": True}, 422, ("\u00e9",)),
    ("two streamed", {"model": "tinylm", "inputs": ["1", "2"], "stream": True}, 422, ("one sample",)),
    ("no such class", {**CLASSIFY, "target": 4}, 422, ("target 4", "0 to 3")),
    ("class as text", {**CLASSIFY, "target": "one"}, 422, ("'one'", "0 to 3")),
    ("class as truth value", {**CLASSIFY, "target": True}, 422, ("True", "0 to 3")),
    ("row too short", {**CLASSIFY, "input": ROW[:5]}, 422, ("dimension 1", "5")),
    (
        "two rows as one sample",
        {**CLASSIFY, "input": {"features": {"shape": [2, 6], "datatype": "FP32", "data": ROW + ROW}}},
        422,
        ("2 rows", "inputs"),
    ),
]
# What is wrong, the bytes, and what the detail must say.
BYTES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("nothing", b"", ("required",)),
    ("half a document", b'{"model": "tinylm", "inp', ("body", "no valid JSON")),
    ("no object", b"[1, 2]", ("body", "dictionary")),
    ("null", b"null", ("body",)),
    ("invalid UTF-8", b'{"model": "tinylm", "inputs": ["\xff"]}', ("no valid JSON", "UTF-8")),
    ("half a surrogate pair", b'{"model": "tinylm", "inputs": ["\\ud800"]}', ("no valid JSON", "surrogate")),
    ("NaN", b'{"model": "tinymlp", "inputs": [[NaN, 0, 0, 0, 0, 0]]}', ("no valid JSON",)),
    ("Infinity", b'{"model": "tinymlp", "inputs": [[Infinity, 0, 0, 0, 0, 0]]}', ("no valid JSON",)),
    ("1e999", b'{"model": "tinymlp", "inputs": [[1e999, 0, 0, 0, 0, 0]]}', ("no valid JSON", "infinity")),
    (
        "a number of 400 digits",
        b'{"model": "tinymlp", "inputs": [[' + b"1" * 400 + b", 0, 0, 0, 0, 0]]}",
        ("no valid JSON",),
    ),
    ("a huge seed", b'{"model": "tinylm", "inputs": ["1"], "parameters": {"seed": 1' + b"0" * 30 + b"}}", ("seed",)),
    ("deep nesting", b'{"model": "tinylm", "inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", ("depth",)),
    ("nested rows", b'{"model": "tinymlp", "inputs": ' + b"[" * 900 + b"]" * 900 + b"}", ("6]",)),
    ("nested prompts", b'{"model": "tinylm", "inputs": ' + b"[" * 900 + b"]" * 900 + b"}", ("input 0",)),
    ("nested chain", b'{"model": "tinylm", "inputs": ["1"], "chain": ' + b"[" * 900 + b"]" * 900 + b"}", ("chain",)),
]


def _serves_on(server: Any) -> None:
    assert len(server.predict("tinylm", ["1+1="], parameters={"max_new_tokens": 1})["outputs"]) == 1
    assert len(server.predict("tinymlp", [ROW])["outputs"]) == 1


@pytest.mark.parametrize(("body", "status", "words"), [case[1:] for case in PREDICT], ids=[case[0] for case in PREDICT])
def test_predict_names_what_is_wrong(
    server: Any, problem: Any, body: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    problem(server.post("/predict", **body), status, *words)
    _serves_on(server)


@pytest.mark.parametrize(
    ("body", "status", "words"), [case[1:] for case in SEARCHES], ids=[case[0] for case in SEARCHES]
)
def test_search_names_what_is_wrong(
    server: Any, problem: Any, body: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    problem(server.post("/cola/search", **body), status, *words)
    _serves_on(server)


@pytest.mark.parametrize(("content", "words"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES])
def test_bytes_that_are_no_request_are_refused(
    server: Any, problem: Any, content: bytes, words: tuple[str, ...]
) -> None:
    response = server.client.post("/predict", content=content, headers={"content-type": "application/json"})
    document = problem(response, 422, *words)
    for error in document.get("errors", []):
        assert error.keys() == {"field", "reason"}
    _serves_on(server)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_other_content_types_are_refused(server: Any, problem: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = server.client.post("/predict", content=b'{"model": "tinylm", "inputs": ["1"]}', headers=headers)
    problem(response, 415, kind or "no type at all", "application/json")


def test_json_may_name_its_character_set(server: Any) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    content = b'{"model": "tinylm", "inputs": ["1"]}'
    assert server.client.post("/predict", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/cola/search"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_of_100_megabytes_is_refused(server: Any, problem: Any, path: str, is_chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 20)

    content = chunks() if is_chunked else b" " * (100 << 20)
    response = server.client.post(path, content=content, headers={"content-type": "application/json"})
    problem(response, 413, "16777216 bytes", "FATHOM_MAX_BODY_BYTES")
    _serves_on(server)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/absent", 404), ("GET", "/predict", 405), ("DELETE", "/models/tinylm", 405), ("POST", "/metrics", 405)],
)
def test_unknown_routes_and_methods_are_problems_too(
    server: Any, problem: Any, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    problem(response, status, path)
    assert (status == 405) == ("allow" in response.headers)


def test_full_queue_says_when_to_come_back(serve: Any, problem: Any) -> None:
    with serve(max_queue_requests=4) as server, ThreadPoolExecutor(24) as threads:

        def ask(_: int) -> httpx.Response:
            response: httpx.Response = server.post("/predict", model="tinylm", inputs=["1"] * 4)
            return response

        answers = list(threads.map(ask, range(96)))
        refused = [response for response in answers if response.status_code != 200]
        assert 0 < len(refused) < len(answers)
        for response in refused:
            problem(response, 429, "limit of 4")
            assert int(response.headers["retry-after"]) >= 1
        _serves_on(server)


def test_request_that_no_queue_could_hold_is_too_large_and_not_asked_to_come_back(serve: Any, problem: Any) -> None:
    with serve(max_queue_requests=4) as server:
        response = server.post("/predict", model="tinylm", inputs=["1"] * 5)
        problem(response, 413, "5 samples", "at most 4", "several requests")
        assert "retry-after" not in response.headers
        _serves_on(server)


def test_errors_list_every_field(server: Any, problem: Any) -> None:
    response: httpx.Response = server.post("/predict", model=1, inputs="x", chain=2, foo=3)
    document = problem(response, 422)
    assert {error["field"] for error in document["errors"]} == {"model", "inputs", "chain", "foo"}
