"""From messages to the bodies of /v2 and back. Runs nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError

from models.datatype import beyond
from models.errors import InputError
from service.api.rpc import open_inference_pb2 as pb
from service.api.v2 import texts
from service.api.v2.infer import Answer
from service.api.v2.schemas import GenerateRequest, GenerateResponse, InferRequest, Ran
from service.api.v2.tensors import WIRE, Piece
from service.engine.engine import Engine
from service.problems import malformed

_M = TypeVar("_M", bound=Message)
_B = TypeVar("_B", bound=BaseModel)
_Parameters: TypeAlias = Mapping[str, pb.InferParameter]

# Where the typed contents of a datatype lie. FP16 has none: it comes as raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Chains of several rows in one text, for parameters are no lists here.
_BETWEEN_CHAINS = ";"
# Triton's mark of the last response to a request that has several.
_FINAL = "triton_final_response"


def body_of(request: pb.ModelInferRequest) -> InferRequest:
    """The body that says the same. Raises InputError naming fields."""
    inputs = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": _values(one.parameters),
        }
        for one in request.inputs
    ]
    outputs = [{"name": one.name, "parameters": _values(one.parameters)} for one in request.outputs]
    parameters = _riding(request.parameters)
    return _validated(
        InferRequest, {"id": request.id or None, "parameters": parameters, "inputs": inputs, "outputs": outputs}
    )


def data_of(request: pb.ModelInferRequest) -> list[Piece]:
    """The bytes of each input, views where they came raw. Raises InputError where they came in neither way."""
    raw = request.raw_input_contents
    if not raw:
        return [memoryview(_packed(one)) for one in request.inputs]
    if len(raw) != len(request.inputs) or any(one.HasField("contents") for one in request.inputs):
        raise InputError(
            f"{len(raw)} raw contents came with {len(request.inputs)} inputs; send one for each input, "
            "and no typed contents beside them"
        )
    return [memoryview(one) for one in raw]


def generate_body_of(request: pb.ModelInferRequest, text: str) -> GenerateRequest:
    """The body of a generation of one text. Raises InputError naming fields."""
    return _validated(
        GenerateRequest, {"id": request.id or None, "text_input": text, "parameters": _riding(request.parameters)}
    )


def response_of(request: pb.ModelInferRequest, body: InferRequest, engine: Engine, told: Answer) -> Any:
    """The response: the outputs that were asked for, in that order, as raw bytes."""
    by_name = {output.name: output for output in told.outputs}
    chosen = [by_name[one.name] for one in body.outputs] or told.outputs
    return pb.ModelInferResponse(
        model_name=engine.manifest.name,
        model_version=engine.manifest.version,
        id=request.id,
        parameters=_parameters(told.ran),
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in chosen
        ],
        raw_output_contents=[bytes(one.raw) for one in chosen],
    )


def piece_of(piece: GenerateResponse) -> pb.ModelInferResponse:
    """One piece of a text; the last has what ran, and Triton's mark."""
    said: dict[str, pb.InferParameter] = {}
    if piece.parameters is not None:
        said = {**_parameters(piece.parameters), _FINAL: pb.InferParameter(bool_param=True)}
    output = pb.ModelInferResponse.InferOutputTensor(name=texts.OUTPUT.name, datatype=texts.OUTPUT.datatype, shape=[1])
    return pb.ModelInferResponse(
        model_name=piece.model_name,
        model_version=piece.model_version,
        id=piece.id or "",
        parameters=said,
        outputs=[output],
        raw_output_contents=[texts.packed([piece.text_output.encode()])],
    )


def message_of(body: BaseModel | Mapping[str, Any], kind: type[_M]) -> _M:
    """A message with the fields of a body; what the message has no field for is left out."""
    said = body.model_dump(exclude_none=True) if isinstance(body, BaseModel) else dict(body)
    message: _M = ParseDict(said, kind(), ignore_unknown_fields=True)
    return message


def _validated(kind: type[_B], said: Mapping[str, Any]) -> _B:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise malformed(error) from error


def _values(parameters: _Parameters) -> dict[str, Any]:
    return {name: _value(name, one) for name, one in parameters.items()}


def _value(name: str, parameter: pb.InferParameter) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    if chosen is None:
        raise InputError(f"parameter {name!r:.60} has no value; send one, or leave it out")
    return getattr(parameter, chosen)


def _riding(parameters: _Parameters) -> dict[str, Any]:
    said = _values(parameters)
    chain = said.get("chain")
    if isinstance(chain, str) and _BETWEEN_CHAINS in chain:
        said["chain"] = [one.strip() for one in chain.split(_BETWEEN_CHAINS)]
    return said


def _packed(one: pb.ModelInferRequest.InferInputTensor) -> bytes:
    name = _CONTENTS.get(one.datatype)
    if name is None:
        raise InputError(f"input {one.name!r:.60} came as {one.datatype!r:.60} without raw contents; send those")
    values: Sequence[Any] = getattr(one.contents, name)
    if one.datatype == texts.INPUT.datatype:
        return texts.packed(values)
    wire = WIRE[one.datatype]  # type: ignore[index]
    if wire.kind in "iu" and values and (said := beyond(min(values), max(values), one.datatype)):
        raise InputError(f"input {one.name!r:.60} holds {said}; send numbers in that range")
    return np.array(values, wire).tobytes()


def _parameters(ran: Ran) -> dict[str, pb.InferParameter]:
    return dict(_as_parameters(ran.model_dump(exclude_none=True)))


def _as_parameters(said: Mapping[str, Any]) -> Iterator[tuple[str, pb.InferParameter]]:
    for name, value in said.items():
        if isinstance(value, int):
            yield name, pb.InferParameter(int64_param=value)
        else:
            text = value if isinstance(value, str) else _BETWEEN_CHAINS.join(value)
            yield name, pb.InferParameter(string_param=text)
