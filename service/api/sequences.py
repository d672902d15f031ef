"""POST /predict for recurrent models: sequences of any length, whole or as the next steps of a session."""

from collections.abc import Sequence

import orjson

from models.errors import InputError
from service.api.schemas import PredictRequest
from service.engine.sequence import SequenceEngine, SequenceRead
from service.engine.terms import noted
from service.logs import request_id


async def answer(body: PredictRequest, engine: SequenceEngine) -> bytes:
    """The whole answer to a request, as `PredictResponse` describes it; pydantic would look at every number."""
    if body.parameters.mode != "generate" or body.targets:
        raise InputError(f"model {body.model!r} has no text to score or embed; leave 'mode' and 'targets' out")
    asked = body.session_asked()
    if asked is None:
        return _written(engine, await engine.read(body.inputs, body.chain))
    return _written(engine, [await engine.go_on(body.inputs, body.chain_said(engine), asked)])


def _written(engine: SequenceEngine, done: Sequence[SequenceRead]) -> bytes:
    document = {
        **noted(),
        "model": engine.manifest.name,
        "version": engine.manifest.version,
        "request_id": request_id.get(),
        "outputs": [_output(one, engine) for one in done],
        "usage": {
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "layer_evaluations": sum(one.layer_evaluations for one in done),
        },
        "timing": {
            "queue_ms": 1000 * max(one.timing.queue_s for one in done),
            "compute_ms": 1000 * max(one.timing.compute_s for one in done),
        },
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _output(done: SequenceRead, engine: SequenceEngine) -> dict[str, object]:
    return {
        "outputs": done.outputs,
        "chain": done.chain.layers,
        "layers_executed": done.layers_executed,
        "layers_full": engine.num_layers * done.num_passes,
    }
