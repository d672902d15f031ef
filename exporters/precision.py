"""ONNX graphs in fewer bits, by ONNX Runtime's own tools; what goes in and comes out of every part stays float32.

fp16 keeps weights and arithmetic in half precision. bf16 keeps matrices in half the bytes and computes in float32: the
runtime has no bfloat16 products for CPUs and no tool that converts, and casts when it loads. int8 and int4 keep the
matrices of linear layers in blocks of 32 numbers with a scale each, and round what they are multiplied with block by
block as well. Rounding a whole tensor at a time (`quantize_dynamic`) is not offered: a row's answer would depend on who
else is in its batch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from exporters import onnx as plain_onnx
from exporters.parts import Parts
from models.artifact import Format
from models.errors import ArtifactError

BITS: Mapping[Format, int] = {"onnx-fp16": 16, "onnx-bf16": 16, "onnx-int8": 8, "onnx-int4": 4}
_BLOCK = 32
# Activations are rounded to 8 bits within each row and block, and multiplied as integers.
_ACCURACY_LEVEL = 4


def write(parts: Parts, source: Path, folder: Path, format: Format) -> Iterator[str]:
    """Convert every float32 graph in `source`, written anew if there is none, yielding each file's name.

    Raises ArtifactError if there is nothing to convert.
    """
    num_converted = 0
    with plain_onnx.written(parts, source) as written:
        for part in parts:
            graph = onnx.load(written / plain_onnx.file(part))
            converted = _CONVERTERS[format](graph)
            num_converted += converted != graph
            yield plain_onnx.save(converted, folder / plain_onnx.file(part))
    if not num_converted:
        raise ArtifactError(f"no part has a matrix that {format} could hold in {BITS[format]} bits")


def _half(graph: onnx.ModelProto) -> onnx.ModelProto:
    with _quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return converted


def _brain(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its matrices in bfloat16, and beside each a cast that the runtime carries out once.

    Itself if it has none. Vectors stay: they weigh nothing, and frequencies of positions are among them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    dtype = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    matrices = [one for one in copy.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1]
    for i, matrix in enumerate(matrices):
        name, stored = matrix.name, f"{matrix.name}/bfloat16"
        copy.graph.node.insert(i, helper.make_node("Cast", [stored], [name], f"{name}/cast", to=onnx.TensorProto.FLOAT))
        matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix).astype(dtype), stored))
    return copy if matrices else graph


def _in_blocks(graph: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The graph with its matrices in blocks; itself if it has none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        from onnxruntime.quantization.onnx_model import ONNXModel

        plain = ONNXModel(copy)
        plain.replace_gemm_with_matmul()  # of a row of features; the quantiser knows products alone
        quantizer = MatMulNBitsQuantizer(plain.model, bits=bits, block_size=_BLOCK, accuracy_level=_ACCURACY_LEVEL)
        quantizer.process()
    converted: onnx.ModelProto = quantizer.model.model
    return converted if any(node.op_type == "MatMulNBits" for node in converted.graph.node) else graph


_CONVERTERS: Mapping[Format, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnx-fp16": _half,
    "onnx-bf16": _brain,
    "onnx-int8": lambda graph: _in_blocks(graph, BITS["onnx-int8"]),
    "onnx-int4": lambda graph: _in_blocks(graph, BITS["onnx-int4"]),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a line for each node from the user, and the root logger as it was: these modules set it up at import."""
    root, logger = logging.getLogger(), logging.getLogger("onnxruntime.quantization")
    handlers, level = list(root.handlers), root.level
    before, logger.level = logger.level, logging.WARNING
    try:
        yield
    finally:
        root.handlers[:], logger.level = handlers, before
        root.setLevel(level)
