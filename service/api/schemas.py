"""Request and response bodies. Unknown fields are refused by name; bounds that need a model are checked later."""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictInt

ChainText: TypeAlias = str
ChainField: TypeAlias = ChainText | list[StrictInt] | list[ChainText | list[StrictInt]]


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Parameters(Body):
    """How a language model answers."""

    mode: Literal["generate", "score"] = Field("generate", description="score gives log-probabilities of `targets`")
    max_new_tokens: int = Field(64, ge=1, le=1 << 20)
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="0 is greedy")
    top_k: int = Field(0, ge=0, description="0 keeps every token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=1 << 64)
    stop: list[str] = Field(default_factory=list, max_length=16)
    logprobs: int | None = Field(None, ge=0, le=20, description="alternatives to report with each token")


class PredictRequest(Body):
    """One call for any model, any chain."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "arith", "inputs": ["48213+977="], "chain": "0-3,3-11"},
                {"model": "digits", "inputs": [[0] * 64]},
            ]
        }
    )
    model: str
    version: str | None = None
    inputs: list[Any] | dict[str, Any] = Field(description="texts, token-id lists, rows, or named tensors")
    targets: list[str | list[StrictInt]] | None = Field(None, description="with mode score: one per input")
    chain: ChainField = Field("full", description="'full', '0-3,5,5,7-11', a list of layers, or one of these per input")
    parameters: Parameters = Field(default_factory=Parameters)
    stream: bool = False


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


class RowOutput(BaseModel):
    """Outputs of one input row, by name."""

    outputs: dict[str, Any]
    chain: list[int]
    layers_executed: int
    layers_full: int


class Usage(BaseModel):
    """What a request cost; a layer evaluation is one visit by one token (or one row)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    layer_evaluations: int


class TimingOut(BaseModel):
    """Milliseconds: the longest wait for the device, and the longest time from then on."""

    queue_ms: float
    compute_ms: float


class PredictResponse(BaseModel):
    """One output per input, in order."""

    model: str
    version: str
    request_id: str
    outputs: list[TextOutput] | list[RowOutput]
    usage: Usage
    timing: TimingOut


class BudgetBody(Body):
    """Whichever limit is met first ends the search."""

    simulations: int | None = Field(200, ge=1, le=100_000)
    seconds: float | None = Field(None, gt=0, le=3600, allow_inf_nan=False)
    layer_evaluations: int | None = Field(None, ge=1)


class SpaceBody(Body):
    """The edits: skip a block, or repeat it up to `max_repeats` extra times. Lengths in visits."""

    operations: tuple[Literal["skip", "repeat"], ...] = ("skip", "repeat")
    max_block: int = Field(4, ge=1, le=4, description="visits one edit covers")
    max_repeats: int = Field(4, ge=1, le=4, description="extra copies one repeat makes")
    min_length: int = Field(1, ge=1)
    max_length: int | None = Field(None, ge=1, description="twice the number of layers if not given")


class MctsBody(Body):
    """Constants of the tree search."""

    exploration: float = Field(2**0.5, ge=0, le=1000, allow_inf_nan=False)
    length_penalty: float = Field(5.0, ge=0, le=1000, allow_inf_nan=False)
    random_child: float = Field(0.1, ge=0, le=1)
    widening: float | None = Field(
        2.0,
        gt=0,
        allow_inf_nan=False,
        description="children per square root of visits; null opens all, as in the paper",
    )
    leaf_batch: int = Field(8, ge=1, le=256, description="chains scored together; part of the search's identity")


class SearchRequest(Body):
    """A search of the chain of one sample, or of several."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "arith", "input": "48213+977=", "target": "49190"}]}
    )
    model: str
    version: str | None = None
    input: Any = Field(None, description="one prompt or row")
    inputs: list[Any] | None = Field(None, description="several, instead of `input`")
    target: Any = Field(None, description="the answer wanted: text, token ids, or a class")
    targets: list[Any] | None = None
    reward: Literal["target", "agreement"] | None = Field(None, description="target if one is given, else agreement")
    budget: BudgetBody = Field(default_factory=BudgetBody)
    space: SpaceBody = Field(default_factory=SpaceBody)
    mcts: MctsBody = Field(default_factory=MctsBody)
    seed: int = Field(0, ge=0, lt=1 << 64)
    top_k: int = Field(5, ge=1, le=100, description="chains of the Pareto front to report")
    max_new_tokens: int = Field(64, ge=1, le=1 << 20)
    stream: bool = False


class ChainOutcome(BaseModel):
    """A chain that was run alone."""

    chain: list[int]
    reward: float
    text: str
    length: int
    certified: bool


class ParetoChain(BaseModel):
    """A chain no other beats in both reward and length."""

    chain: list[int]
    reward: float
    length: int


class SearchStats(BaseModel):
    """What a search cost."""

    simulations: int
    distinct_chains: int
    layer_evaluations: int
    layer_evaluations_naive: int
    seconds: float


class SearchResult(BaseModel):
    """What a search found for one sample. `oracle` says that the label was used."""

    oracle: bool
    reward: str
    stopped_by: str
    deterministic: bool
    full: ChainOutcome
    best: ChainOutcome
    pareto: list[ParetoChain]
    stats: SearchStats


class SearchResponse(SearchResult):
    """The result of a search of one sample."""

    model: str
    version: str
    id: str
    space: SpaceBody
    mcts: MctsBody


class SearchesResponse(BaseModel):
    """The results of several samples, in order."""

    model: str
    version: str
    id: str
    results: list[SearchResult]
    space: SpaceBody
    mcts: MctsBody


class ModelInfo(BaseModel):
    """One version of one model."""

    name: str
    version: str
    state: str
    reason: str = ""
    kind: str | None = None
    num_layers: int | None = None
    residual_form: str | None = None
    max_chain_length: int | None = None
    inputs: list[dict[str, Any]] = Field(default_factory=list)
    outputs: list[dict[str, Any]] = Field(default_factory=list)
    formats: list[str] = Field(default_factory=list)
    provenance: dict[str, str] = Field(default_factory=dict)


class Health(BaseModel):
    """Whether the process lives, or serves."""

    status: str
