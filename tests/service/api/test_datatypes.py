"""Whole numbers of every size, through every dialect that carries tensors: unchanged, and never wrapped."""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from exporters.adopt import adopt_file, parse_input
from fathom import Client, InvalidError, load, serve
from models.datatype import DTYPES, beyond
from service.api.rpc import open_inference_pb2 as pb

WHOLE = [name for name in DTYPES if "INT" in name]
ENDS = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in DTYPES.items() if "INT" in name}
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)
INFER = "/inference.GRPCInferenceService/ModelInfer"


def _values(datatype: str) -> Any:
    """Two rows: the ends of the range, and what lies between them."""
    low, high = ENDS[datatype]
    return np.array([[low, high, 1], [0, high - 1, 2]], DTYPES[datatype])  # type: ignore[index]


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "foreign", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, str(path))
    return path


class Brightness(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean(dim=[1, 2, 3])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each datatype a graph that gives what it takes, and the mean of images of bytes."""
    folder = tmp_path_factory.mktemp("whole")
    for datatype in WHOLE:
        kind = getattr(TensorProto, datatype)
        path = _save(
            folder / f"{datatype}.onnx",
            [helper.make_node("Identity", ["x"], ["y"])],
            [helper.make_tensor_value_info("x", kind, ["n", 3])],
            [helper.make_tensor_value_info("y", kind, ["n", 3])],
        )
        adopt_file(path, folder / "repository", datatype)
    path = _save(
        folder / "mean.onnx",
        [
            helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("GlobalAveragePool", ["numbers"], ["means"]),
        ],
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["n", 3, 1, 1])],
    )
    adopt_file(path, folder / "repository", "mean")
    return folder / "repository"


@pytest.fixture(scope="module")
def server(serve: Any, repository: Path) -> Iterator[Any]:
    with serve(repository=repository, backend="onnx", grpc_port=0, response_cache_bytes=1 << 20) as served:
        yield served


def _over_http(server: Any) -> Any:
    return triton_http.InferenceServerClient("{}:{}".format(*server.address))


def _over_grpc(server: Any) -> Any:
    return triton_grpc.InferenceServerClient(f"127.0.0.1:{server.app.state.rpc.port}")


def _typed(server: Any, datatype: str, field: str, values: list[int], shape: list[int]) -> Any:
    contents = pb.InferTensorContents(**{field: values})
    one = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape, contents=contents)
    with grpc.insecure_channel(f"127.0.0.1:{server.app.state.rpc.port}") as channel:
        call = channel.unary_unary(
            INFER,
            request_serializer=lambda said: said.SerializeToString(),
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return call(pb.ModelInferRequest(model_name=datatype, inputs=[one]), timeout=60)


def _field(datatype: str) -> str:
    """Where the protocol puts typed contents."""
    wide = "64" if datatype.endswith("64") else ""
    return f"{'uint' if datatype.startswith('U') else 'int'}{wide}_contents"


@pytest.mark.parametrize("datatype", WHOLE)
def test_every_dialect_gives_what_it_took(server: Any, datatype: str) -> None:
    values = _values(datatype)
    rows = values.tolist()
    said = server.predict(datatype, rows)
    assert [one["outputs"]["y"] for one in said["outputs"]] == rows
    named = {"x": {"shape": [2, 3], "datatype": datatype, "data": values.ravel().tolist()}}
    assert server.predict(datatype, named)["outputs"][1]["outputs"]["y"] == rows[1]
    body = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": datatype, "data": rows}]}
    (output,) = server.post(f"/v2/models/{datatype}/infer", **body).json()["outputs"]
    assert (output["datatype"], output["data"]) == (datatype, values.ravel().tolist())
    kserve = server.post(f"/v1/models/{datatype}:predict", instances=rows).json()
    assert kserve["predictions"] == rows
    typed = _typed(server, datatype, _field(datatype), values.ravel().tolist(), [2, 3])
    assert (typed.outputs[0].datatype, typed.raw_output_contents[0]) == (datatype, values.tobytes())
    with Client(str(server.client.base_url)) as client:
        (found,) = client.predict(datatype, values).arrays.values()
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("datatype", WHOLE)
def test_tritons_clients_get_what_they_sent(server: Any, datatype: str) -> None:
    values = _values(datatype)
    with _over_http(server) as client:
        assert client.get_model_metadata(datatype)["inputs"] == [{"name": "x", "datatype": datatype, "shape": [-1, 3]}]
        for sends_binary in (True, False):
            for gets_binary in (True, False):
                tensor = triton_http.InferInput("x", [2, 3], datatype)
                tensor.set_data_from_numpy(values, binary_data=sends_binary)
                wanted = [triton_http.InferRequestedOutput("y", binary_data=gets_binary)]
                found = client.infer(datatype, [tensor], outputs=wanted).as_numpy("y")
                assert found.dtype == values.dtype
                np.testing.assert_array_equal(found, values)
    with _over_grpc(server) as client:
        tensor = triton_grpc.InferInput("x", [2, 3], datatype)
        tensor.set_data_from_numpy(values)
        found = client.infer(datatype, [tensor]).as_numpy("y")
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def _beyond(datatype: str) -> list[int]:
    low, high = ENDS[datatype]
    return [high + 1, low - 1]


@pytest.mark.parametrize(
    ("datatype", "value"),
    [(one, value) for one in WHOLE for value in _beyond(one) if -(1 << 63) <= value < 1 << 64],
)
def test_value_beyond_the_range_is_refused_everywhere(server: Any, datatype: str, value: int) -> None:
    low, high = ENDS[datatype]
    words = f"'x' holds {value}; {datatype} takes {low} to {high}"
    row = [value, 1, 0]
    tensor = {"name": "x", "shape": [1, 3], "datatype": datatype, "data": row}
    for path, body in (
        ("/predict", {"model": datatype, "inputs": [row]}),
        ("/predict", {"model": datatype, "inputs": {"x": {"data": [row]}}}),
        (f"/v2/models/{datatype}/infer", {"inputs": [tensor]}),
        (f"/v1/models/{datatype}:predict", {"instances": [row]}),
    ):
        response = server.post(path, **body)
        assert (response.status_code, words in response.text) == (422, True), response.text
    field = _field(datatype)
    if -(1 << 31) <= value < 1 << 31 and not (field.startswith("u") and value < 0):  # what the message can say
        with pytest.raises(grpc.RpcError) as caught:
            _typed(server, datatype, field, row, [1, 3])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        assert words in caught.value.details()  # type: ignore[attr-defined]
    if -(1 << 63) <= value < 1 << 63:
        with Client(str(server.client.base_url)) as client, pytest.raises(InvalidError, match=words):
            client.predict(datatype, np.array([row], np.int64))


@pytest.mark.parametrize("datatype", WHOLE)
@pytest.mark.parametrize("value", [1.5, 1.0, "1", None, 1e300, 2**70])
def test_what_is_no_whole_number_is_refused(server: Any, datatype: str, value: object) -> None:
    for path, body in (
        ("/predict", {"model": datatype, "inputs": [[value, 1, 2]]}),
        ("/predict", {"model": datatype, "inputs": [[1, value, 2]]}),
        (f"/v1/models/{datatype}:predict", {"instances": [[1, 1, value]]}),
    ):
        response = server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert response.status_code == 422, response.text
        assert f"not {datatype}" in response.text


def test_unsigned_numbers_beyond_int64_stay_exact_beside_small_ones(server: Any) -> None:
    for row in ([2**63, 1, 0], [1, 2**64 - 1, 2**53 + 1], [2**63 - 1, 2**63, 2**63 + 1]):
        assert server.predict("UINT64", [row])["outputs"][0]["outputs"]["y"] == row
        response = server.post("/predict", model="INT64", inputs=[row])
        assert f"holds {max(row)}; INT64 takes" in response.json()["detail"]
    mixed = server.post("/predict", model="UINT64", inputs=[[2**63, -1, 0]])
    assert "holds -1; UINT64 takes 0 to" in mixed.json()["detail"]


def test_bytes_of_another_length_are_refused(server: Any) -> None:
    with _over_http(server) as client:
        tensor = triton_http.InferInput("x", [2, 3], "UINT8")
        tensor._raw_data, tensor._parameters = b"12345", {"binary_data_size": 5}
        with pytest.raises(InferenceServerException, match=r"has 5 bytes; shape \[2, 3\] of UINT8 takes 6"):
            client.infer("UINT8", [tensor])
        wrong = triton_http.InferInput("x", [2, 3], "INT8")
        wrong.set_data_from_numpy(np.zeros((2, 3), np.int8))
        with pytest.raises(InferenceServerException, match="came as 'INT8'; the model takes UINT8"):
            client.infer("UINT8", [wrong])


def test_images_of_bytes_share_batches(server: Any) -> None:
    wanted = PIXELS.mean(axis=(2, 3), dtype=np.float64)[..., None, None]
    found: dict[int, Any] = {}

    def ask(place: int) -> None:
        with Client(str(server.client.base_url)) as client:
            found[place] = client.predict("mean", PIXELS[place : place + 1]).arrays["means"]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(PIXELS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.concatenate([found[place] for place in range(len(PIXELS))]), wanted, rtol=1e-6)
    for image, mean in zip(PIXELS, wanted, strict=True):
        said = server.predict("mean", [image.tolist()])["outputs"][0]["outputs"]["means"]
        np.testing.assert_allclose(said, mean, rtol=1e-6)


def test_cached_answers_are_of_the_same_numbers(server: Any) -> None:
    rows = [[7, 8, 9]]
    first, again = (server.predict("UINT8", rows) for _ in range(2))
    assert "cached" not in first
    assert (again["cached"], again["outputs"][0]["outputs"]) == (1, first["outputs"][0]["outputs"])
    assert "cached" not in server.predict("INT8", rows)  # another model, the same bytes


@pytest.mark.parametrize("datatype", ["UINT8", "INT8", "INT16", "UINT16", "UINT32", "UINT64"])
def test_torch_takes_what_it_can_compute_with(serve: Any, tmp_path: Path, datatype: str) -> None:
    torch.jit.save(torch.jit.script(Brightness()), tmp_path / "bright.pt")
    given = [parse_input(f"pixels:{datatype}:-1,3,4,4")]
    adopt_file(tmp_path / "bright.pt", tmp_path / "repository", "bright", given=given)
    images = PIXELS % 100
    with serve(repository=tmp_path / "repository", backend="torchscript") as served:
        said = served.predict("bright", images.tolist())["outputs"]
    found = [one["outputs"]["output"] for one in said]
    np.testing.assert_allclose(found, images.mean(axis=(1, 2, 3), dtype=np.float64), rtol=1e-5)


def test_python_callables_take_and_give_them() -> None:
    def darker(pixels: Any, by: Any) -> Mapping[str, Any]:
        return {"pixels": pixels // 2, "signed": by - 1}

    inputs = {"pixels": ("UINT8", [-1, 2]), "by": ("INT16", [-1])}
    with serve(darker, inputs=inputs, block=False, port=0) as running, Client(running.url) as client:
        found = client.predict("darker", {"pixels": np.uint8([[255, 4]]), "by": np.int16([-300])}).arrays
        assert {name: (one.dtype.name, one.tolist()) for name, one in found.items()} == {
            "pixels": ("uint8", [[127, 2]]),
            "signed": ("int16", [-301]),
        }
        with pytest.raises(InvalidError, match="'by' holds 40000; INT16 takes -32768 to 32767"):
            client.predict("darker", {"pixels": np.uint8([[1, 1]]), "by": np.int32([40000])})


def test_model_in_process_takes_them(repository: Path) -> None:
    with load(repository / "UINT16") as model:
        np.testing.assert_array_equal(model.predict(_values("UINT16")).arrays["y"], _values("UINT16"))


def test_limits_are_those_of_numpy() -> None:
    for datatype, (low, high) in ENDS.items():
        assert beyond(low, high, datatype) == ""
        assert beyond(low - 1, high, datatype) == f"{low - 1}; {datatype} takes {low} to {high}"
        assert beyond(low, high + 1, datatype) == f"{high + 1}; {datatype} takes {low} to {high}"
