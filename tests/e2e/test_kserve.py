"""KServe's own client against a server process, in both of its protocols."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("acceptance")

CALLS = Path(__file__).with_name("kserve_calls.py")
ROWS = [[float((place * row) % 17) for place in range(64)] for row in (1, 3)]
PROMPT, ANSWER = "72915-4821=", "68094"


def _ask(server: Any, *calls: tuple[str, str, dict[str, Any]]) -> list[Any]:
    sent = [
        {"url": server.url, "protocol": protocol, "method": method, "arguments": arguments}
        for protocol, method, arguments in calls
    ]
    done = subprocess.run((sys.executable, CALLS), input=json.dumps(sent), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_server_and_models_are_alive_and_ready(server: Any) -> None:
    models = [
        (protocol, "is_model_ready", {"model_name": name}) for protocol in ("v1", "v2") for name in ("arith", "digits")
    ]
    servers = [("v1", "is_server_live", {}), ("v2", "is_server_live", {}), ("v2", "is_server_ready", {})]
    absent = [("v1", "is_model_ready", {"model_name": "absent"}), ("v2", "is_model_ready", {"model_name": "absent"})]
    *true, unknown, false = _ask(server, *models, *servers, *absent)
    assert true == [True] * 7
    assert (unknown["status"], false) == (404, False)


def test_instances_become_predictions(server: Any) -> None:
    chain = "0-1,1"
    outputs = server.post("/predict", model="digits", inputs=ROWS, chain=chain)["outputs"]
    logits = [one["outputs"]["logits"] for one in outputs]
    named = [{"features": row} for row in ROWS]
    parameters = {"max_new_tokens": 2}
    rows, objects, texts, short, refused = _ask(
        server,
        ("v1", "infer", {"model_name": "digits", "data": {"instances": ROWS, "chain": chain}}),
        ("v1", "infer", {"model_name": "digits", "data": {"instances": named, "chain": chain}}),
        ("v1", "infer", {"model_name": "arith", "data": {"instances": [PROMPT], "chain": "0-1,3-10"}}),
        ("v1", "infer", {"model_name": "arith", "data": {"instances": [PROMPT], "parameters": parameters}}),
        ("v1", "infer", {"model_name": "digits", "data": {"instances": [[0.0]]}}),
    )
    assert rows["predictions"] == objects["predictions"] == logits
    assert rows["parameters"]["chain"] == chain
    assert (texts["predictions"], texts["parameters"]["chain"]) == ([ANSWER], "0-1,3-10")
    assert short["predictions"] == [ANSWER[:2]]
    assert refused["status"] == 422
    assert "dimension 1 is 1" in refused["message"]


def test_tensors_are_answered_along_a_chain(server: Any) -> None:
    chain = "0-1,1"
    outputs = server.post("/predict", model="digits", inputs=ROWS, chain=chain)["outputs"]
    features = {"name": "features", "shape": [2, 64], "datatype": "FP32", "data": ROWS}
    request = {"model": "digits", "inputs": [features], "parameters": {"chain": chain}}
    (answer,) = _ask(server, ("v2", "infer", {"model_name": "digits", "request": request}))
    (logits,) = answer["outputs"]
    assert logits["shape"] == [2, 10]
    assert logits["data"] == pytest.approx([value for one in outputs for value in one["outputs"]["logits"]])
    assert answer["parameters"]["chain"] == chain
