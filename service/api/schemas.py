"""Request and response bodies. Unknown fields are refused by name; bounds that need a model are checked later."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import WrapValidator
from pydantic_core import PydanticCustomError

from models.sampling import COLDEST
from service.engine.engine import FULL, ChainValue, Engine
from service.engine.sessions import SessionAsked
from service.engine.terms import DEFAULT_PRIORITY, NUM_PRIORITIES


def or_say(expected: str) -> WrapValidator:
    """One reason instead of one for every member of a union."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError as error:
            raise PydanticCustomError("wrong_type", "Input should be {expected}", {"expected": expected}) from error

    return WrapValidator(check)


def _greedy_or_warm(temperature: float) -> float:
    if 0 < temperature < COLDEST:
        raise PydanticCustomError("too_cold", "Input should be 0 (greedy) or at least {least}", {"least": COLDEST})
    return temperature


def _array_or(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """Numbers that were read into an array need no second look."""
    return value if hasattr(value, "__array__") else validate(value)


ChainText: TypeAlias = str
ChainField: TypeAlias = Annotated[
    ChainText | list[int] | list[ChainText | list[int]],
    or_say("'full', 'memory', text like '0-3,5,5,7-11', a list of layers, or a list with one of these per input"),
]
DepthField: TypeAlias = Annotated[
    int | float, or_say("a number of layers as an integer, or a fraction of them like 0.5")
]
Temperature: TypeAlias = Annotated[
    float,
    AfterValidator(_greedy_or_warm),
    Field(ge=0, le=100, allow_inf_nan=False, description=f"0 is greedy; else at least {COLDEST}"),
]
PriorityField: TypeAlias = Annotated[
    int,
    Field(ge=0, le=NUM_PRIORITIES, description=f"1 is the most urgent; 0 the default, which is {DEFAULT_PRIORITY}"),
]


def is_none(value: object) -> bool:
    """Whether a field says nothing and is left out of an answer."""
    return value is None


DEGRADED: Any = Field(
    None,
    exclude_if=is_none,
    description="true where too much waited for the full chain, and a cheaper one ran instead",
)
WARNINGS: Any = Field(None, exclude_if=is_none, description="what was answered, and should be taken with care")
CACHED: Any = Field(
    None, exclude_if=is_none, description="samples answered from the response cache; they executed no layer"
)
InputsField: TypeAlias = Annotated[
    list[Any] | dict[str, Any],
    or_say("a list of texts, of pairs of texts, of token-id lists or of rows, or named tensors"),
    WrapValidator(_array_or),
]
TargetsField: TypeAlias = Annotated[list[str | list[int]], or_say("a list of texts or of token-id lists")]


class Body(BaseModel):
    """A request body: no unknown fields, and a number is not sent as text."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class ChainChoice(Body):
    """Which chain runs: named, or by the static rule of a depth."""

    chain: ChainField = Field(
        FULL, description="'full', 'memory', '0-3,5,5,7-11', a list of layers, or one of these per input"
    )
    depth: DepthField | None = Field(
        None,
        description="in place of a chain: so many layers (integer) or such a fraction of them (float up to 1.0), "
        "evenly spaced, the first and the last among them",
    )

    @field_validator("depth")
    @classmethod
    def _instead_of_a_chain(cls, depth: float | None, info: ValidationInfo) -> float | None:
        if depth is not None and info.data.get("chain") != FULL:
            raise PydanticCustomError("conflict", "Not with chain; leave one of the two out")
        return depth

    def chain_of(self, engine: Engine) -> ChainValue:
        """What is asked of the engine's chains. Raises ChainError for a depth the model does not have."""
        return self.chain if self.depth is None else engine.within(self.depth)


NEW = "new"
SessionId: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]


class SessionChoice(Body):
    """A session of a recurrent model: the next steps of a sequence that comes in several requests."""

    id: SessionId | None = Field(None, description="one's own; without one an id is made, which the answer tells")
    start: bool = Field(False, description="begin, whatever was there under this id")
    end: bool = Field(False, description="forget the session after this answer")

    @model_validator(mode="after")
    def _named(self) -> "SessionChoice":
        if self.id == NEW or (self.id is None and not self.start):
            raise PydanticCustomError("no_session", "Should have an 'id' other than 'new', or 'start'")
        return self


SessionField: TypeAlias = Annotated[
    SessionId | SessionChoice,
    or_say("'new', the id of an open session (A-Z a-z 0-9 . _ : -, at most 128), or {id, start, end}"),
]


class SamplingParameters(Body):
    """How a language model chooses tokens, and when it stops."""

    max_new_tokens: int = Field(64, ge=1, le=1 << 20)
    temperature: Temperature = Field(0.0)  # greedy, whatever the model's own default is: an answer can be repeated
    top_k: int = Field(0, ge=0, description="0 keeps every token; of fillings of a mask: how many, 5 by default")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=1 << 64)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, max_length=16)


class Parameters(SamplingParameters):
    """How a language model answers; and how long and how urgently, for any model."""

    mode: Literal["generate", "score", "embed"] = Field(
        "generate",
        description="score gives log-probabilities of `targets`; embed the mean over tokens of the residual stream "
        "after the last visit, of length 1 (no trained sentence embedding)",
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="alternatives to report with each token")
    timeout_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="seconds the request may wait and run, from its arrival"
    )
    priority: PriorityField = 0
    truncate: bool = Field(False, description="encoders: cut texts that are too long instead of refusing them")
    prompt: str | None = Field(
        None, description="encoders: the name of one of the model's prompts, which is put before each text"
    )


class PredictRequest(ChainChoice):
    """One call for any model, any chain."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "arith", "inputs": ["48213+977="], "chain": "0-3,3-11"},
                {"model": "digits", "inputs": [[0] * 64]},
            ]
        }
    )
    model: str = Field(description="name of a model; 'model@version' is as good as the next field")
    version: str | None = Field(None, description="a version or a label; without one the newest, or the split decides")
    inputs: InputsField = Field(description="texts, pairs of texts, token-id lists, rows, or named tensors")
    targets: TargetsField | None = Field(None, description="with mode score: one per input")
    parameters: Parameters = Field(default_factory=Parameters)
    session: SessionField | None = Field(
        None,
        description="recurrent models: 'new' begins a session, its id goes on with it, and only new steps are sent; it "
        "keeps its chain and belongs to the client that began it",
    )
    stream: bool = False

    def session_asked(self) -> SessionAsked | None:
        """What is said of a session, if anything."""
        if isinstance(self.session, SessionChoice):
            return SessionAsked(self.session.id, self.session.start, self.session.end)
        return None if self.session is None else SessionAsked(None if self.session == NEW else self.session)

    def chain_said(self, engine: Engine) -> ChainValue | None:
        """What is asked of the engine's chains, None where nothing is said of them. Raises ChainError."""
        return self.chain_of(engine) if self.model_fields_set & {"chain", "depth"} else None


class Token(BaseModel):
    """One alternative of a token."""

    token_id: int
    token: str
    logprob: float


class TokenLogprob(Token):
    """A chosen token with the alternatives that were asked for."""

    top: list[Token]


class TextOutput(BaseModel):
    """A generated or scored answer."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"] | None = None
    logprob: float
    logprobs: list[TokenLogprob] | list[float] | None = None
    matches: bool | None = Field(None, description="with mode score: greedy decoding would give exactly the target")
    chain: list[int]
    layers_executed: int = Field(description="visits times passes")
    layers_full: int = Field(description="what the full chain would have executed")


class Ran(BaseModel):
    """What one input cost."""

    chain: list[int]
    layers_executed: int
    layers_full: int
    truncated: bool | None = Field(None, description="true where the text was cut, as was asked for")


class EmbeddingOutput(Ran):
    """The vector of one input: an encoder's embedding, or what a language model holds of it."""

    embedding: list[float]


class LabelOutput(Ran):
    """What a classifier of texts says of one input."""

    label: str
    score: float
    scores: dict[str, float]


class LabelledToken(BaseModel):
    """A token with its likeliest label, and the characters where it stands."""

    text: str
    label: str
    score: float
    start: int | None = None
    end: int | None = None


class TokensOutput(Ran):
    """The tokens of one input, special ones left out."""

    tokens: list[LabelledToken]


class Filling(BaseModel):
    """A token that may stand in the place of a mask."""

    text: str
    token_id: int
    score: float


class FillsOutput(Ran):
    """The likeliest tokens in the place of each mask of one input."""

    fills: list[list[Filling]]


class RowOutput(BaseModel):
    """Outputs of one input row, by name."""

    outputs: dict[str, Any]
    chain: list[int]
    layers_executed: int
    layers_full: int


class Usage(BaseModel):
    """What a request cost; a layer evaluation is one visit by one token (or one row)."""

    prompt_tokens: int = 0
    cached_tokens: int | None = Field(
        None, description="of the prompts, if any; their layers had been evaluated for an earlier request"
    )
    completion_tokens: int = 0
    layer_evaluations: int


class TimingOut(BaseModel):
    """Milliseconds: the longest wait for the device, and the longest time from then on."""

    queue_ms: float
    compute_ms: float


class SessionSaid(BaseModel):
    """The session that a request went on with."""

    id: str
    steps: int = Field(description="read so far, in all its requests")
    expires_in_s: float | None = Field(description="seconds it may stay idle; null where it is over")


class PredictResponse(BaseModel):
    """One output per input, in order."""

    model: str
    version: str
    request_id: str
    outputs: (
        list[TextOutput]
        | list[EmbeddingOutput]
        | list[LabelOutput]
        | list[TokensOutput]
        | list[FillsOutput]
        | list[RowOutput]
    )
    usage: Usage
    timing: TimingOut
    degraded: bool | None = DEGRADED
    cached: int | None = CACHED
    warnings: list[str] | None = WARNINGS
    session: SessionSaid | None = Field(None, exclude_if=is_none)


class SessionInfo(SessionSaid):
    """One open session."""

    model: str
    version: str
    chain: list[int]
    busy: bool = Field(description="another request uses it at this moment")


class ModelInfo(BaseModel):
    """One version of one model."""

    name: str
    version: str
    state: str
    reason: str = Field("", description="what failed, if anything did, although an older version may serve")
    labels: list[str] = Field(default_factory=list, description="names for it that requests may use as a version")
    split: int | None = Field(None, description="weight among the requests that name no version, if these are divided")
    kind: str | None = None
    num_layers: int | None = None
    residual_form: str | None = None
    is_trained: bool = Field(True, description="false of weights not trained in that form, whose answers mean nothing")
    max_chain_length: int | None = None
    inputs: list[dict[str, Any]] = Field(default_factory=list)
    outputs: list[dict[str, Any]] = Field(default_factory=list)
    image: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = Field(
        None, description="the model's own, for requests of the OpenAI dialect that are silent on it"
    )
    sequence: dict[str, Any] | None = None
    classes: list[str] = Field(default_factory=list)
    formats: list[str] = Field(default_factory=list)
    provenance: dict[str, str] = Field(default_factory=dict)


class Health(BaseModel):
    """Whether the process lives, or serves."""

    status: str
