"""Every operation keeps what its description promises, whatever is sent: requests made from the OpenAPI document.

Generated requests are mostly refused; the sound ones below make sure that answers are held against their schemas too.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import positive_data_acceptance

_SEARCHES = ("/cola/search", "/cola/jobs")
# Models of the documents' examples, and those that are served here.
_SERVED = {"arith": "tinylm", "digits": "tinymlp"}
_SIMULATIONS = 20
# An answer to a request that leaves no time for another; any other server error is a finding.
_CONFIG = {"checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]}}}
_PROMPT, _ROW = "12+34=", [0.0] * 6
_TEXT, _ROWS = {"model": "tinylm", "inputs": [_PROMPT]}, {"model": "tinymlp", "inputs": [_ROW]}
_SAID = {"model": "tinylm", "prompt": _PROMPT, "max_tokens": 4}
_SEARCH = {"model": "tinylm", "input": _PROMPT, "budget": {"simulations": 8}}
_TENSOR = {"name": "features", "shape": [1, 6], "datatype": "FP32", "data": _ROW}
_TENSORS = {"inputs": [_TENSOR]}
_BYTES = {**_TENSORS, "parameters": {"binary_data_output": True}}
_ONE_TEXT = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [_PROMPT]}]}
# Requests that succeed, of every operation whose answer hangs on its body.
_SOUND: list[tuple[str, str, dict[str, Any]]] = [
    ("/predict", "", {**_TEXT, "chain": "0,1,1,2", "parameters": {"logprobs": 2}}),
    ("/predict", "", {**_TEXT, "targets": ["46"], "parameters": {"mode": "score"}}),
    ("/predict", "", {**_TEXT, "parameters": {"mode": "embed"}}),
    ("/predict", "", {**_TEXT, "stream": True}),
    ("/predict", "", {**_ROWS, "depth": 0.5}),
    ("/cola/search", "", {**_SEARCH, "include_tree": True}),
    ("/cola/search", "", {**_SEARCH, "stream": True}),
    ("/cola/search", "", {"model": "tinymlp", "inputs": [_ROW, _ROW], "budget": {"simulations": 8}}),
    ("/cola/jobs", "", _SEARCH),
    ("/v1/completions", "", {**_SAID, "logprobs": 2, "n": 2}),
    ("/v1/completions", "", {**_SAID, "stream": True}),
    ("/v1/embeddings", "", {"model": "tinylm", "input": [_PROMPT, _PROMPT]}),
    ("/v1/embeddings", "", {"model": "tinylm", "input": _PROMPT, "encoding_format": "base64"}),
    ("/v1/models/{model}:predict", "tinymlp", {"instances": [_ROW]}),
    ("/v1/models/{model}:predict", "tinylm", {"instances": [_PROMPT]}),
    ("/v2/models/{model}/infer", "tinymlp", _TENSORS),
    ("/v2/models/{model}/infer", "tinymlp", _BYTES),
    ("/v2/models/{model}/infer", "tinylm", _ONE_TEXT),
    ("/v2/models/{model}/generate", "tinylm", {"text_input": _PROMPT}),
    ("/v2/models/{model}/generate_stream", "tinylm", {"text_input": _PROMPT}),
]


@pytest.fixture(scope="module")
def served(serve: Any) -> Iterator[Any]:
    with serve(max_inputs=64) as server:
        yield server


@pytest.fixture(scope="module")
def contract(served: Any) -> schemathesis.BaseSchema:
    config = schemathesis.Config.from_dict(_CONFIG)
    schema = schemathesis.openapi.from_url(str(served.client.base_url.join("/openapi.json")), config=config)

    @schema.hook
    def map_path_parameters(context: Any, path_parameters: Any) -> Any:
        return _of_a_served_model(path_parameters)

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        return _bounded(_of_a_served_model(body)) if context.operation.path in _SEARCHES else _of_a_served_model(body)

    return schema


api = schemathesis.pytest.from_fixture("contract")


@api.parametrize()
@settings(max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_answered_that_is_not_described(case: Case, served: Any) -> None:
    response = case.call()
    # Whether a request is sound hangs on the model: its names, layers and inputs are in no description.
    case.validate_response(response, excluded_checks=[positive_data_acceptance])
    if case.operation.path.endswith("/unload") and case.path_parameters.get("model") in _SERVED.values():
        served.client.post(f"/models/{case.path_parameters['model']}/load")


@pytest.mark.parametrize(("path", "model", "body"), _SOUND)
def test_what_succeeds_is_answered_as_described(
    path: str, model: str, body: dict[str, Any], contract: schemathesis.BaseSchema
) -> None:
    named = {"model": model} if model else {}
    case = contract[path]["POST"].Case(body=body, path_parameters=named, media_type="application/json")
    assert case.call_and_validate().status_code in (200, 202)


def _of_a_served_model(named: Any) -> Any:
    """Most names that are made up become those of models, so that requests get past the registry."""
    name = named.get("model") if isinstance(named, dict) else None
    if not isinstance(name, str):
        return named
    return {**named, "model": _SERVED.get(name, ("tinylm", "tinymlp", name)[len(name) % 3])}


def _bounded(body: Any) -> Any:
    """A search that ends soon, if its budget is one at all."""
    budget = body.get("budget", {}) if isinstance(body, dict) else None
    simulations = budget.get("simulations", 1) if isinstance(budget, dict) else None
    if type(simulations) is int and simulations > 0:
        return {**body, "budget": {**budget, "simulations": min(simulations, _SIMULATIONS)}}
    return body
