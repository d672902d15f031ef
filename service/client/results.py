"""What a caller gets: frozen records, whether the answer came over HTTP or from this process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Layers: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """One token a model could have chosen."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One text of a language model.

    logprobs: of each token, where they were asked for; top: the alternatives to each. matches: of mode score, whether
    greedy decoding would give exactly the target.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[Alternative, ...], ...] = ()
    matches: bool | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a text as it comes; `text` may be empty while a character is not whole."""

    text: str
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost; a layer evaluation is one visit by one token, or one row."""

    layer_evaluations: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """The session a prediction went on with: steps read in all its requests, and how long it may stay idle.

    None left where it is over.
    """

    id: str
    steps: int
    expires_in_s: float | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answers of a language model, one per input, or arrays [B, ...] by name of any other, `embedding` among them.

    chains: the layers each input visited. degraded: a cheaper chain ran because too much waited. cached: inputs that
    were answered from memory. said: what a classifier of texts, a labeller of tokens or a filler of masks says of each
    input, as POST /predict writes it. warnings: what should be taken with care. Of sequences of several lengths an
    array is one of objects [B], each an array [T, ...].
    """

    model: str
    version: str
    request_id: str
    usage: Usage
    chains: tuple[Layers, ...] = ()
    layers_executed: int = 0
    layers_full: int = 0
    answers: tuple[Answer, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    said: tuple[Mapping[str, Any], ...] = ()
    degraded: bool = False
    cached: int = 0
    warnings: tuple[str, ...] = ()
    session: Session | None = None

    @property
    def texts(self) -> list[str]:
        """The text of each answer."""
        return [answer.text for answer in self.answers]


@dataclass(frozen=True, slots=True)
class Found:
    """A chain a search tried; `text` and `certified` of those that were run alone."""

    chain: Layers
    reward: float
    length: int
    text: str | None = None
    certified: bool | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found for one sample. `oracle` says that the label was used; `stats` what it cost."""

    id: str
    model: str
    version: str
    oracle: bool
    reward: str
    stopped_by: str
    full: Found
    best: Found
    pareto: tuple[Found, ...]
    top: tuple[Found, ...]
    stats: Mapping[str, float]
    remembered: str | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; -1 is a size that is free, the first axis the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of one model; what is empty is not known before it is loaded."""

    name: str
    version: str
    state: str
    reason: str = ""
    kind: str | None = None
    num_layers: int | None = None
    max_chain_length: int | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a server answers, and whether it serves; if not, why."""

    live: bool
    ready: bool
    detail: str = ""
