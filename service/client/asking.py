"""What a caller may say beside the inputs, and the body that comes of it: one shape for HTTP and for this process."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np

from service.client.results import Array

Chain: TypeAlias = str | Sequence[int] | Sequence[str | Sequence[int]]
# One text, or several; token ids of each; rows; an array, or arrays by name.
Inputs: TypeAlias = str | Sequence[str] | Sequence[Sequence[Any]] | Array | Mapping[str, Array]


class Terms(TypedDict, total=False):
    """Of any call: seconds for the whole of it, retries included; and 1 (most urgent) to 5."""

    timeout: float | None
    priority: int


class Sampling(Terms, total=False):
    """How a language model chooses tokens; and the chain, `"0-3,5-11"` or its layers, or a depth in place of it."""

    version: str
    chain: Chain
    depth: float
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: Sequence[str]


class Asking(Sampling, total=False):
    """Of a prediction; a model of tensors takes version, chain and depth alone, an encoder truncate and prompt too.

    A recurrent one takes a session: "new", the id of one, or {"id", "start", "end"}.
    """

    mode: Literal["generate", "score", "embed"]
    targets: Sequence[str | Sequence[int]]
    logprobs: int
    truncate: bool
    prompt: str
    session: str | Mapping[str, Any]


class Searching(Terms, total=False):
    """Of a search: its fields in POST /cola/search, whose description GET /docs has."""

    version: str
    target: Any
    truth: Any
    choices: Sequence[str]
    reward: str
    verifier: str
    preset: str
    budget: Mapping[str, Any]
    space: Mapping[str, Any]
    mcts: Mapping[str, Any]
    seed: int
    top_k: int
    max_new_tokens: int
    remember: bool


_BESIDE_PARAMETERS = ("version", "chain", "depth", "targets", "session")
_TERMS = ("timeout", "priority")


def predict_body(model: str, inputs: Inputs, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /predict; what is None is left out."""
    said = {name: value for name, value in asked.items() if value is not None and name not in _TERMS}
    beside = {name: said.pop(name) for name in _BESIDE_PARAMETERS if name in said}
    body = {"model": model, "inputs": _listed(inputs), **beside}
    return {**body, "parameters": said} if said else body


def _listed(inputs: Inputs) -> Any:
    """One text as a list of it, and an array, which may hold texts, as lists."""
    if isinstance(inputs, np.ndarray):
        return inputs.tolist()
    return [inputs] if isinstance(inputs, str) else inputs


def search_body(model: str, sample: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /cola/search for one sample."""
    said = {name: value for name, value in asked.items() if value is not None and name not in _TERMS}
    return {"model": model, "input": sample, **said}


def arrays_of(inputs: Inputs) -> Array | Mapping[str, Array] | None:
    """The inputs if they are arrays, which travel as bytes."""
    if isinstance(inputs, np.ndarray):
        return inputs
    if isinstance(inputs, Mapping) and all(isinstance(one, np.ndarray) for one in inputs.values()):
        return inputs
    return None
