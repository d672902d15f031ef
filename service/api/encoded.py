"""What an encoder's answers look like on /predict, by task. Knows no queue; the other dialects take them from here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from models.errors import InputError
from service.api.schemas import Parameters, PredictRequest
from service.engine.encoder import Encoded, EncoderEngine, Reading, TextInput
from service.engine.terms import noted
from service.logs import request_id

# What an encoder can be told.
_PARAMETERS = {"mode", "truncate", "prompt", "top_k", "timeout_s", "priority"}
_FILLS = 5


def inputs_of(body: PredictRequest) -> list[TextInput]:
    """Texts, pairs or token ids. Raises InputError naming the first that is none of these."""
    if isinstance(body.inputs, dict):
        raise InputError("an encoder takes a list of texts, of pairs of texts or of token-id lists")
    given: list[Any] = body.inputs if isinstance(body.inputs, list) else body.inputs.tolist()
    for place, one in enumerate(given):
        check(one, f"input {place}")
    return given


def check(one: object, name: str) -> None:
    """Raise InputError for what is neither a text, a pair of texts nor token ids."""
    parts = one if isinstance(one, list) else [None]
    is_pair = len(parts) == 2 and all(isinstance(text, str) for text in parts)
    is_ids = all(type(token_id) is int for token_id in parts)
    if not (isinstance(one, str) or is_pair or is_ids):
        raise InputError(f"{name} is neither a text, a pair of texts nor a list of token ids; send one of these")


def reading_of(parameters: Parameters) -> Reading:
    """How texts are to be read."""
    return Reading(parameters.truncate, parameters.prompt)


async def answer(body: PredictRequest, engine: EncoderEngine) -> bytes:
    """The answer as `PredictResponse` describes it; pydantic would look at every number."""
    _check(body, engine)
    done = await engine.encode(inputs_of(body), body.chain, reading_of(body.parameters))
    told = output_of(engine, body.parameters.top_k)
    document = {
        **noted(),
        "model": engine.manifest.name,
        "version": engine.manifest.version,
        "request_id": request_id.get(),
        "outputs": [{**told(one), **_cost(one)} for one in done],
        "usage": {
            "prompt_tokens": sum(one.num_tokens for one in done),
            "completion_tokens": 0,
            "layer_evaluations": sum(one.layer_evaluations for one in done),
        },
        "timing": {
            "queue_ms": 1000 * max(one.timing.queue_s for one in done),
            "compute_ms": 1000 * max(one.timing.compute_s for one in done),
        },
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def output_of(engine: EncoderEngine, top_k: int = 0) -> Callable[[Encoded], dict[str, Any]]:
    """What is said of one input, by the model's task; `top_k` fillings of each mask, 0 for the default."""
    by_task: Mapping[str, Callable[[Encoded], dict[str, Any]]] = {
        "embed": lambda done: {"embedding": np.ascontiguousarray(done.values)},
        "classify": lambda done: _labelled(done, engine.encoder.labels),
        "tokens": lambda done: {"tokens": _tokens(done, engine)},
        "fill-mask": lambda done: {"fills": [_fills(one, engine, top_k or _FILLS) for one in done.values]},
    }
    return by_task[engine.encoder.task]


def _check(body: PredictRequest, engine: EncoderEngine) -> None:
    name, task, mode = engine.manifest.name, engine.encoder.task, body.parameters.mode
    if body.targets is not None or mode not in ("generate", "embed") or (mode == "embed" and task != "embed"):
        raise InputError(f"model {name!r} is an encoder for {task!r}; leave 'mode' and 'targets' out")
    if foreign := sorted(body.parameters.model_fields_set - _PARAMETERS):
        raise InputError(f"model {name!r} writes no text; leave {foreign} out of the parameters")


def _cost(done: Encoded) -> dict[str, Any]:
    return {
        "chain": done.chain.layers,
        "layers_executed": done.layers_executed,
        "layers_full": done.layers_full,
        **({"truncated": True} if done.tokens.was_cut else {}),
    }


def _labelled(done: Encoded, labels: Sequence[str]) -> dict[str, Any]:
    scores = done.values.tolist()
    best = int(done.values.argmax())
    return {"label": labels[best], "score": scores[best], "scores": dict(zip(labels, scores, strict=True))}


def _tokens(done: Encoded, engine: EncoderEngine) -> list[dict[str, Any]]:
    """The tokens that are of the text, each with its likeliest label."""
    tokens, labels = done.tokens, engine.encoder.labels
    return [
        {
            "text": tokens.texts[place] if tokens.texts else engine.tokenizer.token(token_id),
            "label": labels[int(done.values[place].argmax())],
            "score": float(done.values[place].max()),
            **(dict(zip(("start", "end"), tokens.spans[place], strict=True)) if tokens.texts else {}),
        }
        for place, token_id in enumerate(tokens.ids)
        if not tokens.is_special[place]
    ]


def _fills(probabilities: Any, engine: EncoderEngine, count: int) -> list[dict[str, Any]]:
    """The likeliest tokens in the place of one mask."""
    count = min(count, len(probabilities))
    likeliest = np.argpartition(-probabilities, count - 1)[:count]
    return [
        {
            "text": engine.tokenizer.decode(int(one)),
            "token_id": int(one),
            "score": float(probabilities[one]),
        }
        for one in likeliest[np.argsort(-probabilities[likeliest], kind="stable")]
    ]
