"""Triton's own gRPC clients against a real server process with the shipped models, and its end with both ports open."""

import asyncio
import signal
import socket
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.xdist_group("acceptance")

PROMPTS = ["72915-4821=", "4821+977+650="]
ANSWERS = [b"68094", b"5798,6448"]


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


def _tensor(name: str, values: Any, datatype: str) -> Any:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def _texts(prompts: list[str]) -> list[Any]:
    return [_tensor("text_input", np.array([prompt.encode() for prompt in prompts], object), "BYTES")]


def _rows(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 17, (count, 64)).astype(np.float32)


def test_server_and_models_are_described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "fathom"
    for name in ("arith", "digits"):
        assert client.is_model_ready(name, "1")
        assert list(client.get_model_metadata(name, "1").versions) == ["1"]


def test_rows_are_classified_as_over_http(server: Any, client: Any) -> None:
    rows = _rows(5)
    for chain in ("full", "0-1,1"):
        said = server.post("/predict", model="digits", inputs=rows.tolist(), chain=chain)["outputs"]
        found = client.infer("digits", [_tensor("features", rows, "FP32")], parameters={"chain": chain}, request_id="7")
        np.testing.assert_array_equal(found.as_numpy("logits"), np.float32([one["outputs"]["logits"] for one in said]))
        assert found.get_response().id == "7"


def test_texts_are_answered_along_chains_of_their_own(client: Any) -> None:
    found = client.infer("arith", _texts(PROMPTS), parameters={"chain": "0-1,3-10;full"})
    assert found.as_numpy("text_output").tolist() == ANSWERS
    assert found.get_response().parameters["chain"].string_param == "0-1,3-10;0-11"


def test_asynchronous_clients_may_overlap(server: Any, client: Any) -> None:
    rows = _rows(40)

    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(server.grpc_address) as asking:
            calls = [asking.infer("digits", [_tensor("features", rows[i : i + 1], "FP32")]) for i in range(40)]
            return [found.as_numpy("logits")[0] for found in await asyncio.gather(*calls)]

    together = client.infer("digits", [_tensor("features", rows, "FP32")]).as_numpy("logits")
    np.testing.assert_allclose(asyncio.run(ask()), together, atol=1e-4)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.infer("arith", _texts(PROMPTS)).as_numpy("text_output"), range(16)))
    assert [answer.tolist() for answer in answers] == [ANSWERS] * 16


def test_text_is_streamed(client: Any) -> None:
    arrived: list[Any] = []
    client.start_stream(lambda result, error: arrived.append(error or result))
    client.async_stream_infer("arith", _texts(PROMPTS[:1]), parameters={"depth": 12})
    client.stop_stream()
    assert b"".join(one.as_numpy("text_output")[0] for one in arrived) == ANSWERS[0]
    assert arrived[-1].get_response().parameters["triton_final_response"].bool_param


def test_errors_arrive_with_their_code(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="dimension 1 is 63") as caught:
        client.infer("digits", [_tensor("features", _rows(1)[:, :63], "FP32")])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="absent") as caught:
        client.infer("absent", [_tensor("features", _rows(1), "FP32")])
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_deadline_frees_the_sequence(server: Any, client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"(?i)deadline") as caught:
        client.infer("arith", _texts(["1+1="] * 64), client_timeout=0.002)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert client.infer("arith", _texts(PROMPTS)).as_numpy("text_output").tolist() == ANSWERS


def test_signal_drains_both_ports(start: Any) -> None:
    with start("--backend", "onnx", "--grpc-port", "0") as server:
        with triton.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(16) as threads:
            client.infer("arith", _texts(PROMPTS))
            before = server.metric("fathom_running_sequences")
            over_grpc = [threads.submit(client.infer, "arith", _texts(PROMPTS * 20)) for _ in range(6)]
            over_http = [threads.submit(server.post, "/predict", model="arith", inputs=PROMPTS * 20) for _ in range(6)]
            while server.metric("fathom_running_sequences") <= before and not over_grpc[0].done():
                threading.Event().wait(0.005)
            server.process.send_signal(signal.SIGTERM)
            for one in over_grpc:
                try:
                    assert one.result().as_numpy("text_output").tolist() == ANSWERS * 20
                except InferenceServerException as error:  # had not arrived yet
                    assert error.status() == "StatusCode.UNAVAILABLE"  # noqa: PT017
            answered = [one.exception() is None for one in over_http]
        assert server.process.wait(timeout=60) == 0
        assert any(one.exception() is None for one in over_grpc)
        assert any(answered)


def test_port_that_is_taken_is_said_before_anything_is_loaded(start: Any, shipped_repository: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fathom = Path(sysconfig.get_path("scripts")) / "fathom"
        command = (fathom, "serve", "--repository", shipped_repository, "--port", "0", "--grpc-port", port)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is in use" in done.stderr
