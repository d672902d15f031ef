"""Triton's own HTTP client against a real server process, with the shipped models."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.xdist_group("acceptance")  # one server, one export

PROMPTS = ["72915-4821=", "4821+977+650="]
ANSWERS = ["68094", "5798,6448"]


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with triton.InferenceServerClient("{}:{}".format(*server.address), network_timeout=120) as client:
        yield client


def _tensor(name: str, values: Any, datatype: str, is_binary: bool) -> Any:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=is_binary)
    return tensor


def _texts(prompts: list[str], is_binary: bool) -> Any:
    return _tensor("text_input", np.array([prompt.encode() for prompt in prompts], object), "BYTES", is_binary)


def _rows(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 17, (count, 64)).astype(np.float32)


def _wanted(name: str, is_binary: bool) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=is_binary)]


def test_server_and_models_are_described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "fathom"
    for name in ("arith", "digits"):
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, "1")
        assert client.get_model_metadata(name, "1")["versions"] == ["1"]
    assert not client.is_model_ready("absent")
    index = client.get_model_repository_index()
    assert [(entry["name"], entry["state"]) for entry in index] == [("arith", "READY"), ("digits", "READY")]


@pytest.mark.parametrize("sends_binary", [False, True])
@pytest.mark.parametrize("gets_binary", [False, True])
def test_rows_are_classified(server: Any, client: Any, sends_binary: bool, gets_binary: bool) -> None:
    rows = _rows(5)
    for chain in ("full", "0-1,1"):
        said = server.post("/predict", model="digits", inputs=rows.tolist(), chain=chain)["outputs"]
        found = client.infer(
            "digits",
            [_tensor("features", rows, "FP32", sends_binary)],
            outputs=_wanted("logits", gets_binary),
            request_id="7",
            parameters={"chain": chain},
        )
        np.testing.assert_array_equal(found.as_numpy("logits"), np.float32([one["outputs"]["logits"] for one in said]))
        told = found.get_response()
        assert told["id"] == "7"
        assert told["parameters"]["layers_executed"] == sum(one["layers_executed"] for one in said)


@pytest.mark.parametrize("sends_binary", [False, True])
@pytest.mark.parametrize("gets_binary", [False, True])
def test_texts_are_answered(client: Any, sends_binary: bool, gets_binary: bool) -> None:
    found = client.infer(
        "arith",
        [_texts(PROMPTS, sends_binary)],
        "1",
        outputs=_wanted("text_output", gets_binary),
        parameters={"chain": ["0-1,3-10", "full"]},
    )
    texts = found.as_numpy("text_output").tolist()
    assert [text.decode() if isinstance(text, bytes) else text for text in texts] == ANSWERS
    assert found.get_response()["parameters"]["chain"] == ["0-1,3-10", "0-11"]


def test_everything_is_binary_unless_said_otherwise(client: Any) -> None:
    found = client.infer("arith", [_texts(PROMPTS[:1], True)])
    assert found.get_output("text_output")["parameters"] == {"binary_data_size": 9}
    assert found.as_numpy("text_output").tolist() == [ANSWERS[0].encode()]


def test_requests_may_overlap(server: Any) -> None:
    rows = _rows(40)
    with triton.InferenceServerClient("{}:{}".format(*server.address), concurrency=8) as client:
        waiting = [
            client.async_infer("digits", [_tensor("features", rows[i : i + 1], "FP32", True)]) for i in range(40)
        ]
        found = np.concatenate([one.get_result().as_numpy("logits") for one in waiting])
        together = client.infer("digits", [_tensor("features", rows, "FP32", True)]).as_numpy("logits")
    np.testing.assert_allclose(found, together, atol=1e-4)


def test_errors_arrive_with_their_message_and_status(client: Any) -> None:
    rows = _rows(1)
    for tensor, options, status, word in (
        (_tensor("features", rows[:, :63], "FP32", True), {}, "422", "dimension 1 is 63"),
        (_tensor("features", rows.astype(np.float64), "FP64", True), {}, "422", "the model takes FP32"),
        (_tensor("features", rows, "FP32", True), {"parameters": {"chain": "0,99"}}, "422", "layer 99"),
        (_tensor("features", rows, "FP32", True), {"priority": 9}, "422", "priority"),
        (_tensor("features", rows, "FP32", True), {"request_compression_algorithm": "gzip"}, "415", "uncompressed"),
        (_tensor("features", rows, "FP32", True), {"model_version": "9"}, "404", "'9'"),
    ):
        with pytest.raises(InferenceServerException, match=word) as caught:
            client.infer("digits", [tensor], **options)
        assert caught.value.status() == status


def test_models_are_unloaded_and_loaded(client: Any) -> None:
    client.unload_model("digits")
    assert not client.is_model_ready("digits")
    client.load_model("digits")
    assert client.is_model_ready("digits")
    counted = client.get_inference_statistics("digits")["model_stats"][0]
    assert counted["inference_count"] >= 0
