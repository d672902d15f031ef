"""gRPC: what /v2 answers, in messages, asked by Triton's client and by raw calls."""

import asyncio
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from tritonclient.utils import InferenceServerException

from models.errors import BackendError
from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc import optional
from service.api.rpc.calls import code_of
from service.api.rpc.optional import check_installed
from service.engine.language import LanguageEngine
from service.problems import _TABLE

PROTO = Path(pb.__file__).with_name("open_inference.proto")
INFER = "/inference.GRPCInferenceService/ModelInfer"
ROWS = np.array([[1.0, 0.0, 2.0, 0.5, 1.5, 3.0], [0.25] * 6], np.float32)


@pytest.fixture(scope="module")
def server(serve: Any) -> Iterator[Any]:
    with serve(backend="onnx", grpc_port=0, max_body_bytes=1 << 20) as served:
        yield served


def _address(server: Any) -> str:
    return f"127.0.0.1:{server.app.state.rpc.port}"


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(_address(server)) as client:
        yield client


@pytest.fixture
def channel(server: Any) -> Iterator[Any]:
    with grpc.insecure_channel(_address(server)) as channel:
        yield channel


def _rows(values: Any = ROWS, datatype: str = "FP32", name: str = "features") -> list[Any]:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def _texts(*texts: str) -> list[Any]:
    return _rows(np.array([text.encode() for text in texts], object), "BYTES", "text_input")


def _raw(channel: Any, request: Any, **options: Any) -> Any:
    call = channel.unary_unary(
        INFER,
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return call(request, **{"timeout": 60, **options})


def _typed(model: str = "tinymlp", **contents: Any) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="features", datatype="FP32", shape=[2, 6], contents=pb.InferTensorContents(**contents)
    )
    return pb.ModelInferRequest(model_name=model, inputs=[tensor])


def _logits(server: Any, **fields: Any) -> Any:
    rows = server.predict("tinymlp", ROWS.tolist(), **fields)["outputs"]
    return np.array([row["outputs"]["logits"] for row in rows], np.float32)


def _wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_generated_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    out = tmp_path / "set"
    arguments = ("-I", str(PROTO.parent), f"--descriptor_set_out={out}", PROTO.name)
    subprocess.run((sys.executable, "-m", "grpc_tools.protoc", *arguments), check=True)
    (described,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    _forget_json_names(described.message_type)
    generated = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(generated)
    assert described == generated


def _forget_json_names(messages: Any) -> None:
    """The compiler writes them into descriptions, and leaves them out of code."""
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        _forget_json_names(message.nested_type)


def test_messages_are_numbered_as_the_clients() -> None:
    for name, ours in pb.DESCRIPTOR.message_types_by_name.items():
        theirs = triton.service_pb2.DESCRIPTOR.message_types_by_name[name]
        fields = {field.name: (field.number, field.type) for field in theirs.fields}
        assert {field.name: (field.number, field.type) for field in ours.fields}.items() <= fields.items()


def test_server_and_models_are_described(server: Any, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tinylm", "1")
    assert not client.is_model_ready("absent")
    over_http = server.client.get("/v2").json()
    assert client.get_server_metadata(as_json=True) == over_http
    told = server.client.get("/v2/models/tinymlp").json()
    found = client.get_model_metadata("tinymlp")
    assert (found.name, list(found.versions), found.platform) == ("tinymlp", ["1"], told["platform"])
    assert [(one.name, one.datatype, list(one.shape)) for one in found.inputs] == [("features", "FP32", [-1, 6])]
    index = client.get_model_repository_index()
    assert [(one.name, one.version, one.state) for one in index.models] == [
        ("tinylm", "1", "READY"),
        ("tinymlp", "1", "READY"),
    ]


@pytest.mark.parametrize("chain", ["full", "0,0,2"])
def test_rows_are_answered_as_by_predict(server: Any, client: Any, chain: str) -> None:
    found = client.infer("tinymlp", _rows(), request_id="7", parameters={"chain": chain})
    np.testing.assert_array_equal(found.as_numpy("logits"), _logits(server, chain=chain))
    told = found.get_response()
    assert (told.model_name, told.model_version, told.id) == ("tinymlp", "1", "7")
    assert told.parameters["chain"].string_param == {"full": "0-2", "0,0,2": "0,0,2"}[chain]
    assert told.parameters["layers_executed"].int64_param == 6


def test_each_row_may_have_its_own_chain_and_depth_is_one(server: Any, client: Any) -> None:
    found = client.infer("tinymlp", _rows(), parameters={"chain": "1;full"})
    np.testing.assert_array_equal(found.as_numpy("logits"), _logits(server, chain=["1", "full"]))
    assert found.get_response().parameters["chain"].string_param == "1;0-2"
    for depth in (2, 0.7):
        found = client.infer("tinymlp", _rows(), parameters={"depth": depth})
        assert found.get_response().parameters["chain"].string_param == "0,2"


def test_texts_are_continued_with_parameters(server: Any, client: Any) -> None:
    prompts, chosen = ["12+7=", "3-1="], {"max_new_tokens": 9, "temperature": 5.0, "seed": 3, "top_k": 7}
    wanted = server.predict("tinylm", prompts, parameters={**chosen, "stop": ["1"]})["outputs"]
    found = client.infer("tinylm", _texts(*prompts), parameters={**chosen, "stop": "1"})
    assert [text.decode() for text in found.as_numpy("text_output")] == [one["text"] for one in wanted]


def test_typed_contents_are_the_same_numbers(server: Any, channel: Any) -> None:
    response = _raw(channel, _typed(fp32_contents=ROWS.ravel().tolist()))
    assert response.raw_output_contents[0] == _logits(server).tobytes()
    text = pb.ModelInferRequest.InferInputTensor(
        name="text_input",
        datatype="BYTES",
        shape=[1, 1],
        contents=pb.InferTensorContents(bytes_contents=[b"12+7="]),
    )
    response = _raw(channel, pb.ModelInferRequest(model_name="tinylm", inputs=[text]))
    (raw,) = response.raw_output_contents
    assert struct.unpack_from("<I", raw) == (len(raw) - 4,)
    assert raw[4:].decode() == server.predict("tinylm", ["12+7="])["outputs"][0]["text"]


def test_outputs_come_as_asked_for(client: Any) -> None:
    found = client.infer("tinymlp", _rows(), outputs=[triton.InferRequestedOutput("logits")])
    assert found.as_numpy("logits").shape == (2, 4)
    with pytest.raises(InferenceServerException, match="no output 'other'"):
        client.infer("tinymlp", _rows(), outputs=[triton.InferRequestedOutput("other")])


@pytest.mark.parametrize(
    ("model", "inputs", "options", "code", "word"),
    [
        ("absent", _rows(), {}, "NOT_FOUND", "absent"),
        ("tinymlp", _rows(), {"model_version": "9"}, "NOT_FOUND", "'9'"),
        ("tinymlp", _rows(ROWS[:, :5]), {}, "INVALID_ARGUMENT", "dimension 1 is 5"),
        ("tinymlp", _rows(ROWS.astype(np.float64), "FP64"), {}, "INVALID_ARGUMENT", "takes FP32"),
        ("tinymlp", _rows(name="other"), {}, "INVALID_ARGUMENT", "other"),
        ("tinymlp", _rows(), {"parameters": {"chain": "0,3"}}, "INVALID_ARGUMENT", "layer 3"),
        ("tinymlp", _rows(), {"parameters": {"depth": 4}}, "INVALID_ARGUMENT", "depth 4"),
        ("tinymlp", _rows(), {"parameters": {"depth": float("nan")}}, "INVALID_ARGUMENT", "depth"),
        ("tinymlp", _rows(), {"parameters": {"depth": 2, "chain": "0"}}, "INVALID_ARGUMENT", "Not with chain"),
        ("tinymlp", _rows(), {"parameters": {"seed": 1}}, "INVALID_ARGUMENT", "writes no text"),
        ("tinymlp", _rows(), {"parameters": {"colour": 1}}, "INVALID_ARGUMENT", "colour: there is no such field"),
        ("tinylm", _texts("1" * 64), {}, "OUT_OF_RANGE", "at most 63"),
        ("tinylm", _texts("\u00e9"), {}, "INVALID_ARGUMENT", "alphabet"),
    ],
)
def test_errors_have_a_code_and_say_what_is_wrong(
    client: Any, model: str, inputs: Any, options: dict[str, Any], code: str, word: str
) -> None:
    with pytest.raises(InferenceServerException, match=word) as caught:
        client.infer(model, inputs, **options)
    assert caught.value.status() == f"StatusCode.{code}"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"raw_input_contents": [b"1", b"2"]}, "2 raw contents came with 1 inputs"),
        ({"raw_input_contents": [ROWS.tobytes()]}, "no typed contents"),
        ({"parameters": {"chain": pb.InferParameter()}}, "'chain' has no value"),
        ({"inputs": [pb.ModelInferRequest.InferInputTensor(name="features", datatype="FP16", shape=[2, 6])]}, "raw"),
        ({"inputs": [pb.ModelInferRequest.InferInputTensor(name="features", datatype="FP32", shape=[-1])]}, "shape"),
        ({"inputs": []}, "inputs"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(channel: Any, change: dict[str, Any], word: str) -> None:
    request = _typed(fp32_contents=ROWS.ravel().tolist())
    for name in change:
        request.ClearField(name)
    request.MergeFrom(pb.ModelInferRequest(**change))
    with pytest.raises(grpc.RpcError, match=word) as caught:
        _raw(channel, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_every_error_of_the_table_has_a_code() -> None:
    internal = {kind for kind, status, _ in _TABLE if status != 500 and code_of(_error(kind)).name == "INTERNAL"}
    assert internal == set()


def _error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.args = ("said",)
    return error


def test_large_messages_are_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="larger than max") as caught:
        client.infer("tinymlp", _rows(np.zeros((50_000, 6), np.float32)))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_requests_may_overlap(server: Any) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(_address(server)) as client:
            rows = [client.infer("tinymlp", _rows(ROWS[i % 2 : i % 2 + 1])) for i in range(40)]
            return [one.as_numpy("logits")[0] for one in await asyncio.gather(*rows)]

    np.testing.assert_allclose(asyncio.run(ask()), np.tile(_logits(server), (20, 1)), atol=1e-5)


def _streamed(client: Any, *requests: tuple[str, Any, dict[str, Any]]) -> list[Any]:
    arrived: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: arrived.put(error or result.get_response()))
    for model, inputs, parameters in requests:
        client.async_stream_infer(model, inputs, parameters=parameters)
    client.stop_stream()
    return list(arrived.queue)


def test_text_is_streamed_in_pieces(server: Any, client: Any) -> None:
    (wanted,) = server.predict("tinylm", ["12+7="], chain="0-2", parameters={"max_new_tokens": 9})["outputs"]
    parameters = {"chain": "0-2", "max_new_tokens": 9}
    *pieces, last = _streamed(client, ("tinylm", _texts("12+7="), parameters))
    assert len(pieces) > 3
    said = b"".join(one.raw_output_contents[0][4:] for one in (*pieces, last)).decode()
    assert said == wanted["text"]
    assert all("triton_final_response" not in one.parameters for one in pieces)
    assert last.parameters["triton_final_response"].bool_param
    assert last.parameters["chain"].string_param == "0-2"
    assert last.parameters["layers_executed"].int64_param == wanted["layers_executed"]


def test_stream_goes_on_after_an_error(client: Any) -> None:
    answers = _streamed(
        client, ("absent", _texts("1"), {}), ("tinymlp", _rows(), {}), ("tinylm", _texts("1"), {"depth": 9})
    )
    assert isinstance(answers[0], InferenceServerException)
    assert "absent" in str(answers[0])
    assert answers[1].outputs[0].name == "logits"
    assert "depth 9" in str(answers[2])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prompts that are never answered, and how many of them were given up."""
    started, ended = threading.Semaphore(0), threading.Semaphore(0)

    async def hang(*arguments: Any) -> Any:
        started.release()
        try:
            await asyncio.sleep(60)
        finally:
            ended.release()

    monkeypatch.setattr(LanguageEngine, "generate", hang)
    return started, ended


def test_deadline_that_passes_ends_the_work(channel: Any, slow: Any) -> None:
    request = pb.ModelInferRequest(
        model_name="tinylm",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])],
        raw_input_contents=[b"\1\0\0\0001"],
    )
    with pytest.raises(grpc.RpcError) as caught:
        _raw(channel, request, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert slow[1].acquire(timeout=10)


def test_client_that_leaves_ends_the_work(server: Any, slow: Any) -> None:
    async def leave() -> None:
        async with triton_aio.InferenceServerClient(_address(server)) as client:
            asking = asyncio.ensure_future(client.infer("tinylm", _texts("1")))
            await asyncio.to_thread(slow[0].acquire, timeout=10)
            asking.cancel()

    asyncio.run(leave())
    assert slow[1].acquire(timeout=10)


def test_client_that_leaves_frees_its_sequences(server: Any, client: Any) -> None:
    for _ in range(4):
        request = {"chain": "0-2,0-2,0-2,0-2", "max_new_tokens": 1000}
        first = threading.Event()
        client.start_stream(lambda result, error, first=first: first.set())
        client.async_stream_infer("tinylm", _texts("12+7="), parameters=request)
        assert first.wait(10)
        client.stop_stream(cancel_requests=True)
    _wait_until(lambda: server.metric("fathom_running_sequences") == server.metric("fathom_kv_pages_used") == 0)


def test_full_queue_says_when_to_come_back(serve: Any) -> None:
    with serve(max_queue_requests=2, grpc_port=0) as server, ThreadPoolExecutor(24) as threads:
        tensor = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[2])
        raw = [b"\1\0\0\0001\1\0\0\0002"]
        request = pb.ModelInferRequest(model_name="tinylm", inputs=[tensor], raw_input_contents=raw)
        with grpc.insecure_channel(_address(server)) as channel:
            asked = [threads.submit(_raw, channel, request) for _ in range(96)]
            refused: list[Any] = [error for one in asked if (error := one.exception())]
        assert 0 < len(refused) < len(asked)
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(error.trailing_metadata())["retry-after"]) >= 1


def test_models_are_unloaded_and_loaded(serve: Any) -> None:
    with serve(grpc_port=0) as server, triton.InferenceServerClient(_address(server)) as client:
        client.infer("tinymlp", _rows())
        (counted,) = client.get_inference_statistics("tinymlp").model_stats
        assert (counted.name, counted.inference_count, counted.inference_stats.success.count) == ("tinymlp", 2, 1)
        assert len(client.get_inference_statistics().model_stats) == 2
        client.unload_model("tinymlp")
        assert not client.is_model_ready("tinymlp")
        with pytest.raises(InferenceServerException, match="/load") as caught:
            client.infer("tinymlp", _rows())
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        client.load_model("tinymlp")
        assert client.is_model_ready("tinymlp")
        with pytest.raises(InferenceServerException, match="config"):
            client.load_model("tinymlp", config="{}")


def test_calls_are_counted_and_carry_their_id(server: Any, channel: Any) -> None:
    def count(outcome: str) -> float:
        return float(server.metric("fathom_requests_total", route=INFER, outcome=outcome))

    before = count("OK"), count("NOT_FOUND")
    request = _typed(fp32_contents=ROWS.ravel().tolist())
    method = channel.unary_unary(INFER, request_serializer=lambda one: one.SerializeToString())
    _, call = method.with_call(request, metadata=(("x-request-id", "asked.1"),))
    assert dict(call.trailing_metadata())["x-request-id"] == "asked.1"
    with pytest.raises(grpc.RpcError):
        _raw(channel, _typed("absent"))
    assert (count("OK"), count("NOT_FOUND")) == (before[0] + 1, before[1] + 1)


def _health(channel: Any, service: str) -> Any:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_draining_server_says_so_and_takes_nothing_new(serve: Any) -> None:
    with serve(grpc_port=0) as server, grpc.insecure_channel(_address(server)) as channel:
        request = _typed(fp32_contents=ROWS.ravel().tolist())
        assert _raw(channel, request).model_name == "tinymlp"
        for service in ("", "inference.GRPCInferenceService"):
            assert _health(channel, service) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError, match="no service 'other'"):
            _health(channel, "other")
        server.app.state.lifecycle.is_draining = True
        assert _health(channel, "") == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError, match="shutting down") as caught:
            _raw(channel, request)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_without_a_port_there_is_no_grpc(serve: Any) -> None:
    with serve() as server:
        assert not hasattr(server.app.state, "rpc")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="install the extra 'grpc'"):
        check_installed()
