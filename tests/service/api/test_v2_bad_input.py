"""Bad input in the Open Inference Protocol gets the protocol's error, with value, limit and remedy; others serve on."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
RAW = np.array([ROW], "<f4").tobytes()
MLP, LM = "tinymlp/infer", "tinylm/infer"


def _with(tensor: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"inputs": [{key: value for key, value in {**tensor, **members}.items() if value is not ...}]}


def _row(**members: Any) -> dict[str, Any]:
    return _with({"name": "features", "shape": [1, 6], "datatype": "FP32", "data": ROW}, **members)


def _raw(**members: Any) -> dict[str, Any]:
    size = {"binary_data_size": 24}
    return _with({"name": "features", "shape": [1, 6], "datatype": "FP32", "parameters": size}, **members)


def _text(**members: Any) -> dict[str, Any]:
    return _with({"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["1+1="]}, **members)


def _raw_text(size: int, **members: Any) -> dict[str, Any]:
    return _text(data=..., parameters={"binary_data_size": size}, **members)


def _told(body: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return {**body, "parameters": parameters}


NAN = np.array([[np.nan, *ROW[1:]]], "<f4").tobytes()
# What is wrong, the route, the document, what lies behind it, the status, and what the error must say.
CASES: list[tuple[str, str, dict[str, Any], bytes, int, tuple[str, ...]]] = [
    ("truncated binary", MLP, _raw(), RAW[:-1], 422, ("24 bytes", "23", "binary_data_size")),
    ("too much binary", MLP, _raw(), RAW + b"\0", 422, ("24 bytes", "25", "fit")),
    ("binary nobody announced", MLP, _row(), RAW, 422, ("0 bytes", "24")),
    ("binary that is not there", MLP, _raw(), b"", 422, ("24 bytes", "0 lie")),
    ("absurd size", MLP, _raw(parameters={"binary_data_size": 1 << 63}), RAW, 422, ("9223372036854775808", "24")),
    ("negative size", MLP, _raw(parameters={"binary_data_size": -24}), RAW, 422, ("binary_data_size", "-24 came")),
    ("size as text", MLP, _raw(parameters={"binary_data_size": "24"}), RAW, 422, ("binary_data_size", "'24' came")),
    ("shape of more bytes", MLP, _raw(shape=[2, 6]), RAW, 422, ("24 bytes", "[2, 6]", "48")),
    ("absurd binary shape", MLP, _raw(shape=[1 << 62, 6]), RAW, 422, ("24 bytes", "more than any body")),
    ("shape without rows", MLP, _raw(shape=[0, 6], parameters={"binary_data_size": 0}), b"", 422, ("at least one",)),
    ("negative dimension", MLP, _raw(shape=[-1, 6]), RAW, 422, ("shape.0", "-1 came")),
    ("fractional dimension", MLP, _raw(shape=[1.5, 4]), RAW, 422, ("shape.0", "1.5 came")),
    ("too many dimensions", MLP, _raw(shape=[1] * 40), RAW, 422, ("shape", "32")),
    ("shape as a number", MLP, _raw(shape=6), RAW, 422, ("shape", "list", "6 came")),
    ("wrong rank", MLP, _raw(shape=[6]), RAW, 422, ("shape [6]", "6]")),
    ("wrong binary shape", MLP, _raw(shape=[6, 1]), RAW, 422, ("dimension 1", "1", "6")),
    ("wrong binary datatype", MLP, _raw(datatype="INT32"), RAW, 422, ("INT32", "FP32")),
    ("unknown datatype", MLP, _raw(datatype="FP99"), RAW, 422, ("FP99", "FP32")),
    ("binary NaN", MLP, _raw(), NAN, 422, ("NaN", "finite")),
    ("unknown binary input", MLP, _raw(name="pixels"), RAW, 422, ("pixels", "features")),
    ("data in both places", MLP, _raw(data=ROW), RAW, 422, ("features", "either", "one of them")),
    ("data in no place", MLP, _row(data=...), b"", 422, ("features", "either", "one of them")),
    ("no inputs", MLP, {"inputs": []}, b"", 422, ("inputs", "at least 1")),
    ("missing inputs", MLP, {}, b"", 422, ("inputs", "required")),
    ("one input twice", MLP, {"inputs": _row()["inputs"] * 2}, b"", 422, ("features", "once")),
    ("unknown input", MLP, _row(name="pixels"), b"", 422, ("pixels", "features")),
    ("one input too many", MLP, {"inputs": [*_row()["inputs"], *_row(name="b")["inputs"]]}, b"", 422, ("'b'",)),
    ("unknown output", MLP, {**_row(), "outputs": [{"name": "scores"}]}, b"", 422, ("scores", "logits")),
    ("wrong datatype", MLP, _row(datatype="INT64"), b"", 422, ("INT64", "FP32")),
    ("shape that does not fit", MLP, _row(shape=[2, 6]), b"", 422, ("6 values", "[2, 6]")),
    ("absurd shape", MLP, _row(shape=[1 << 63, 6]), b"", 422, ("6 values", "9223372036854775808")),
    ("ragged data", MLP, _row(data=[ROW, ROW[:5]]), b"", 422, ("different lengths",)),
    ("half nested data", MLP, _row(data=[1.0, ROW]), b"", 422, ("different lengths",)),
    ("data of texts", MLP, _row(data=["a"] * 6), b"", 422, ("plain numbers",)),
    ("data of one long text", MLP, _row(data=["a" * 100_000, *[""] * 100_000]), b"", 422, ("plain numbers",)),
    ("data of nothing", MLP, _row(data=[None] * 6), b"", 422, ("plain numbers",)),
    ("data of truth values", MLP, _row(data=[True] * 6), b"", 422, ("not FP32",)),
    ("data as text", MLP, _row(data="abc"), b"", 422, ("type str", "list")),
    ("number beyond float32", MLP, _row(data=[1e39, *ROW[1:]]), b"", 422, ("beyond FP32", "finite")),
    (
        "shared memory",
        MLP,
        _row(parameters={"shared_memory_region": "a"}),
        b"",
        422,
        ("shared_memory_region", "no such"),
    ),
    ("unknown field", MLP, {**_row(), "chain": "0"}, b"", 422, ("chain", "no such field")),
    ("unknown parameter", MLP, _told(_row(), colour=1), b"", 422, ("colour", "no such field")),
    ("parameter for texts", MLP, _told(_row(), temperature=1), b"", 422, ("temperature", "leave")),
    ("layer out of range", MLP, _told(_row(), chain="0,3"), b"", 422, ("visit 1", "layer 3", "0 to 2")),
    ("chain too long", MLP, _told(_row(), chain=[0] * 13), b"", 422, ("13 visits", "at most 12")),
    ("too many chains", MLP, _told(_row(), chain=["0", "1"]), b"", 422, ("2 chains", "1 inputs")),
    ("another model's name", MLP, {**_row(), "model_name": "tinylm"}, b"", 422, ("tinylm", "tinymlp")),
    ("unknown model", "absent/infer", _row(), b"", 404, ("absent", "tinymlp/1")),
    ("unknown version", "tinymlp/versions/9/infer", _row(), b"", 404, ("'9'", "tinymlp/1")),
    ("text under another name", LM, _text(name="prompt"), b"", 422, ("prompt", "text_input")),
    ("numbers for texts", LM, _text(datatype="FP32"), b"", 422, ("FP32", "BYTES")),
    ("text as a number", LM, _text(data=[5]), b"", 422, ("text 0", "int", "strings")),
    ("nested texts", LM, _text(data=[[["1"]]]), b"", 422, ("text 0", "list", "strings")),
    ("fewer texts than the shape", LM, _text(shape=[2]), b"", 422, ("1 texts", "[2]")),
    ("wrong rank of texts", LM, _text(shape=[1, 1, 1]), b"", 422, ("[1, 1, 1]", "[N, 1]")),
    ("wide texts", LM, _text(shape=[1, 2]), b"", 422, ("[1, 2]", "[N, 1]")),
    ("no texts", LM, _text(shape=[0], data=[]), b"", 422, ("at least one",)),
    ("too many texts", LM, _text(shape=[5000], data=["1"] * 5000), b"", 413, ("5000", "4096", "several")),
    ("absurdly many texts", LM, _raw_text(5, shape=[1 << 63]), b"\1\0\0\0001", 413, ("9223372036854775808", "4096")),
    ("empty text", LM, _text(data=[""]), b"", 422, ("empty", "at least one")),
    ("foreign character", LM, _text(data=["é"]), b"", 422, ("é", "alphabet")),
    ("text too long", LM, _text(data=["1" * 64]), b"", 413, ("64 tokens", "shorten")),
    ("bad UTF-8", LM, _raw_text(6), b"\2\0\0\0\xff\xfe", 422, ("text 0", "byte 0", "UTF-8")),
    ("half a length", LM, _raw_text(7), b"\1\0\0\0001\0\0", 422, ("text 0", "2 bytes", "4")),
    ("half a text", LM, _raw_text(6), b"\5\0\0\0001+", 422, ("text 0", "5 bytes", "2 are left")),
    ("text of 4 gigabytes", LM, _raw_text(5), b"\xff\xff\xff\xff1", 422, ("4294967295", "1 are left")),
    ("binary texts too few", LM, _raw_text(5, shape=[2]), b"\1\0\0\0001", 422, ("1 texts", "[2]")),
    ("generation by a classifier", "tinymlp/generate", {"text_input": "1"}, b"", 422, ("tinymlp", "/infer")),
    ("stream by a classifier", "tinymlp/generate_stream", {"text_input": "1"}, b"", 422, ("tinymlp", "/infer")),
    ("no text to continue", "tinylm/generate", {}, b"", 422, ("text_input", "required")),
    ("text input as a list", "tinylm/generate", {"text_input": ["1"]}, b"", 422, ("text_input", "string")),
    ("stream at the wrong door", "tinylm/generate", _told({"text_input": "1"}, stream=True), b"", 422, ("_stream",)),
    ("error before a stream", "tinylm/generate_stream", {"text_input": "é"}, b"", 422, ("é", "alphabet")),
    ("chain of a stream", "tinylm/generate_stream", _told({"text_input": "1"}, chain="9"), b"", 422, ("layer 9",)),
]
# What the header says of a body of 100 bytes or so, and what the error must say.
SIZES = [
    ("0", "length"),
    ("-1", "-1"),
    ("99999", "99999"),
    ("9" * 30, "999"),
    ("1.5", "1.5"),
    ("many", "many"),
    ("", "''"),
]


def _error(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    for word in words:
        assert word in document["error"]


def _serves_on(server: Any) -> None:
    assert server.post("/v2/models/tinymlp/infer", **_row()).status_code == 200
    assert server.post("/v2/models/tinylm/infer", **_told(_text(), max_new_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("route", "body", "raw", "status", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_error_names_what_is_wrong(
    server: Any, route: str, body: dict[str, Any], raw: bytes, status: int, words: tuple[str, ...]
) -> None:
    document = json.dumps(body).encode()
    headers = {"inference-header-content-length": str(len(document))} if raw else {}
    response = server.client.post(f"/v2/models/{route}", content=document + raw, headers=headers)
    _error(response, status, *words)
    _serves_on(server)


@pytest.mark.parametrize(("said", "word"), SIZES)
def test_header_that_does_not_fit_is_refused(server: Any, said: str, word: str) -> None:
    headers = {"inference-header-content-length": said}
    response = server.client.post("/v2/models/tinymlp/infer", content=json.dumps(_row()), headers=headers)
    _error(response, 422, "Inference-Header-Content-Length", word, "bytes")
    _serves_on(server)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "required"),
        (b"[]", "dictionary"),
        (b'{"inputs": ', "no valid JSON"),
        (b"\xff" * 8, "no valid JSON"),
        (b'{"inputs": [{"name": "features", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "no valid JSON"),
        (json.dumps(_row()).encode() + RAW, "no valid JSON"),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
        (
            json.dumps(_row(data=1)).replace('"data": 1', '"data": ' + "[" * 900 + "]" * 900).encode(),
            "different lengths",
        ),
        (json.dumps(_text(data=1)).replace('"data": 1', '"data": ' + "[" * 900 + "]" * 900).encode(), "text 0"),
    ],
)
def test_bytes_that_are_no_request_are_refused(server: Any, content: bytes, word: str) -> None:
    model = "tinylm" if b"text_input" in content else "tinymlp"
    _error(server.client.post(f"/v2/models/{model}/infer", content=content), 422, word)
    _serves_on(server)


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"content-type": "text/plain"}, "text/plain"),
        ({"content-type": "multipart/form-data"}, "multipart"),
        ({"content-encoding": "gzip"}, "gzip"),
    ],
)
def test_other_types_and_encodings_are_refused(server: Any, headers: dict[str, str], word: str) -> None:
    response = server.client.post("/v2/models/tinymlp/infer", content=json.dumps(_row()), headers=headers)
    _error(response, 415, word, "send")


def test_body_of_100_megabytes_is_refused(server: Any) -> None:
    response = server.client.post("/v2/models/tinymlp/infer", content=b" " * (100 << 20))
    _error(response, 413, "16777216 bytes", "FATHOM_MAX_BODY_BYTES")
    _serves_on(server)


def test_binary_rows_beyond_the_queue_are_refused(serve: Any) -> None:
    with serve(max_queue_rows=4) as server:
        body = _row(shape=[5, 6], data=ROW * 5)
        _error(server.post("/v2/models/tinymlp/infer", **body), 413, "5 rows", "4")
        _serves_on(server)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/absent", 404),
        ("GET", "/v2/models/tinymlp/infer", 405),
        ("GET", "/v2/models/absent", 404),
        ("GET", "/v2/models/absent/ready", 404),
        ("GET", "/v2/models/absent/stats", 404),
        ("GET", "/v2/models/tinymlp/versions/9", 404),
        ("POST", "/v2/repository/models/absent/load", 404),
        ("POST", "/v2/repository/models/absent/unload", 404),
    ],
)
def test_unknown_paths_models_and_methods_get_the_same_shape(server: Any, method: str, path: str, status: int) -> None:
    _error(server.client.request(method, path), status)


def test_loading_refuses_what_it_would_not_heed(server: Any) -> None:
    response = server.post("/v2/repository/models/tinymlp/load", parameters={"config": "{}"})
    _error(response, 422, "config", "no such field")
    _error(server.post("/v2/repository/index", redy=True), 422, "redy", "no such field")


def test_draining_server_refuses_in_the_same_shape(serve: Any) -> None:
    with serve() as server:
        server.app.state.lifecycle.is_draining = True
        _error(server.post("/v2/models/tinymlp/infer", **_row()), 503, "shutting down")
        _error(server.client.get("/v2/health/ready"), 503, "shutting down")
        assert server.client.get("/v2/health/live").status_code == 200
