"""Encoders on the Open Inference Protocol: BYTES texts in, and a row of numbers out or what /predict says, as JSON."""

from collections.abc import Sequence

import numpy as np
import orjson

from models.artifact import TensorSpec
from service.api import encoded
from service.api.v2 import tensors, texts
from service.api.v2.schemas import InferParameters, TensorMetadata
from service.api.v2.tensors import Output
from service.cola.memory import Memory
from service.engine.encoder import Encoded, EncoderEngine, Reading

# What only an encoder can be told.
PARAMETERS = {"truncate", "prompt"}


def outputs_of(engine: EncoderEngine) -> TensorMetadata:
    """The one output: of a text `embedding` or `scores` [N, ...], of its tokens `answer`, a JSON document each."""
    task, width = engine.encoder.task, engine.manifest.outputs[0].shape[-1]
    if task == "embed":
        return TensorMetadata(name="embedding", datatype="FP32", shape=[-1, width])
    if task == "classify":
        return TensorMetadata(name="scores", datatype="FP32", shape=[-1, width])
    return TensorMetadata(name="answer", datatype="BYTES", shape=[-1])


async def encode(
    parameters: InferParameters, given: Sequence[str], shape: Sequence[int], engine: EncoderEngine, memory: Memory
) -> tuple[Output, list[Encoded]]:
    """The output for texts of this shape, and what ran."""
    reading = Reading(parameters.truncate, parameters.prompt)
    read = [engine.tokens(one, reading) for one in given]
    done = await engine.encode(read, await memory.resolve(parameters.chain_of(engine), engine, read))
    said = outputs_of(engine)
    if said.datatype == "FP32":
        rows = np.stack([one.values for one in done])
        return tensors.write(rows, TensorSpec(name=said.name, datatype="FP32", shape=tuple(said.shape))), done
    told = encoded.output_of(engine)
    documents = [orjson.dumps(told(one)) for one in done]
    answers = [one.decode() for one in documents]
    return Output(said.name, said.datatype, tuple(shape), answers, texts.packed(documents)), done
