"""From JSON documents to records. What a newer server says beside is passed over."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from service.client.results import (
    Alternative,
    Answer,
    Array,
    Found,
    ModelInfo,
    Prediction,
    Search,
    Session,
    Tensor,
    Usage,
)

Document = Mapping[str, Any]
_SAID = {"label", "score", "scores", "tokens", "fills"}


def prediction(document: Document) -> Prediction:
    """The answer of POST /predict."""
    outputs: Sequence[Document] = document["outputs"]
    usage = document["usage"]
    return Prediction(
        model=document["model"],
        version=document["version"],
        request_id=document["request_id"],
        usage=Usage(
            layer_evaluations=usage["layer_evaluations"],
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=usage.get("cached_tokens") or 0,
            completion_tokens=usage["completion_tokens"],
        ),
        chains=tuple(tuple(one["chain"]) for one in outputs),
        layers_executed=sum(one["layers_executed"] for one in outputs),
        layers_full=sum(one["layers_full"] for one in outputs),
        answers=tuple(_answer(one) for one in outputs if "text" in one),
        arrays=_arrays(outputs),
        said=tuple({name: one[name] for name in _SAID if name in one} for one in outputs if _SAID & one.keys()),
        degraded=bool(document.get("degraded")),
        cached=document.get("cached") or 0,
        warnings=tuple(document.get("warnings") or ()),
        session=_session(document.get("session")),
    )


def search(document: Document) -> Search:
    """The answer of POST /cola/search for one sample."""
    return Search(
        id=document["id"],
        model=document["model"],
        version=document["version"],
        oracle=document["oracle"],
        reward=document["reward"],
        stopped_by=document["stopped_by"],
        full=_found(document["full"]),
        best=_found(document["best"]),
        pareto=tuple(map(_found, document["pareto"])),
        top=tuple(map(_found, document["top"])),
        stats=dict(document["stats"]),
        remembered=document.get("remembered"),
    )


def model_info(document: Document) -> ModelInfo:
    """One entry of GET /models."""
    known = {name: document[name] for name in ("name", "version", "state", "reason", "kind", "num_layers")}
    return ModelInfo(
        **known,
        max_chain_length=document["max_chain_length"],
        inputs=tensors(document["inputs"]),
        outputs=tensors(document["outputs"]),
    )


def tensors(documents: Iterable[Document]) -> tuple[Tensor, ...]:
    """Inputs or outputs of a model."""
    return tuple(Tensor(one["name"], one["datatype"], tuple(one["shape"])) for one in documents)


def _arrays(outputs: Sequence[Document]) -> dict[str, Array]:
    if "embedding" in outputs[0]:
        return {"embedding": np.asarray([one["embedding"] for one in outputs], np.float32)}
    names = outputs[0].get("outputs", ())
    return {name: _stacked([one["outputs"][name] for one in outputs]) for name in names}


def _stacked(rows: Sequence[Any]) -> Array:
    if len({len(row) for row in rows if isinstance(row, list)}) <= 1:
        return np.asarray(rows)
    stacked = np.empty(len(rows), object)
    stacked[:] = [np.asarray(row) for row in rows]
    return stacked


def _session(document: Document | None) -> Session | None:
    return document and Session(document["id"], document["steps"], document["expires_in_s"])  # type: ignore[return-value]


def _answer(output: Document) -> Answer:
    chosen = output.get("logprobs") or ()
    is_named = any(isinstance(one, Mapping) for one in chosen)
    return Answer(
        text=output["text"],
        token_ids=tuple(output["token_ids"]),
        logprob=output["logprob"],
        finish_reason=output.get("finish_reason"),
        logprobs=tuple(one["logprob"] for one in chosen) if is_named else tuple(chosen),
        top=tuple(tuple(map(_alternative, one["top"])) for one in chosen) if is_named else (),
        matches=output.get("matches"),
    )


def _alternative(document: Document) -> Alternative:
    return Alternative(document["token_id"], document["token"], document["logprob"])


def _found(document: Document) -> Found:
    return Found(
        tuple(document["chain"]),
        document["reward"],
        document["length"],
        document.get("text"),
        document.get("certified"),
    )
