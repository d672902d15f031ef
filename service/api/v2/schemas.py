"""Bodies of the protocol, named and spelled as it does. Unknown fields are refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from service.api.schemas import (
    CACHED,
    DEGRADED,
    WARNINGS,
    Body,
    ChainChoice,
    PriorityField,
    SamplingParameters,
    SessionId,
    is_none,
)

_Size = Annotated[int, Field(ge=0)]
_Shape = Annotated[list[_Size], Field(max_length=32)]


class InferenceError(BaseModel):
    """What went wrong: value, limit, remedy."""

    error: str


class ServerMetadata(BaseModel):
    """Who answers, and what it knows beside the protocol itself."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the process lives."""

    live: bool


class Ready(BaseModel):
    """Whether the server serves."""

    ready: bool


class ModelReady(Ready):
    """Whether a model serves."""

    name: str


class TensorMetadata(BaseModel):
    """An input or output; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives; `parameters` bound its chains."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str | int]


class RideAlong(SamplingParameters, ChainChoice):
    """What rides along with a request: chain or depth for any model with layers, the rest for those of texts."""

    timeout: int = Field(0, ge=0, lt=1 << 64, description="microseconds the request may wait and run; 0 sets no bound")
    priority: PriorityField = 0

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, stop: Any) -> Any:
        """The protocol has no lists among its parameters."""
        return [stop] if isinstance(stop, str) else stop


class InferParameters(RideAlong):
    """Parameters of an inference."""

    truncate: bool = Field(False, description="encoders: cut texts that are too long instead of refusing them")
    prompt: str | None = Field(None, description="encoders: the name of one of the model's prompts, put before a text")

    sequence_id: Annotated[int, Field(ge=0)] | SessionId | Literal[""] = Field(
        0, description="recurrent models: which sequence these are the next steps of; 0 or empty is none"
    )
    sequence_start: bool = Field(False, description="begin it, whatever was there under this id")
    sequence_end: bool = Field(False, description="forget it after this answer")
    binary_data_output: bool = Field(False, description="send outputs as binary data, unless one says otherwise")


class InputParameters(Body):
    """Parameters of one input."""

    binary_data_size: int | None = Field(None, ge=0, description="bytes behind the document, in place of `data`")


class InferInput(Body):
    """One input tensor, its data in the document or behind it."""

    name: str
    shape: _Shape
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Any = Field(None, description="row-major, nested or flat", json_schema_extra={"type": "array", "items": {}})


class RequestedOutputParameters(Body):
    """Parameters of one requested output."""

    binary_data: bool | None = None


class RequestedOutput(Body):
    """An output that is wanted, and how."""

    name: str
    parameters: RequestedOutputParameters = RequestedOutputParameters()


class InferRequest(Body):
    """Tensors in. The path names the model; a name in the body must be the same."""

    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    parameters: InferParameters = Field(default_factory=InferParameters)
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[RequestedOutput] = Field(default_factory=list, description="all outputs if none is named")


class Ran(BaseModel):
    """What ran for the whole request: one chain, or one per row where they differ."""

    chain: str | list[str]
    layers_executed: int = Field(description="visits times passes, all rows together")
    layers_full: int = Field(description="what the full chain would have executed")
    degraded: bool | None = DEGRADED
    cached: int | None = CACHED
    warnings: list[str] | None = WARNINGS
    sequence_steps: int | None = Field(
        None, exclude_if=is_none, description="steps of its sequence read so far, in all requests"
    )


class OutputParameters(BaseModel):
    """Parameters of one output."""

    binary_data_size: int


class InferOutput(BaseModel):
    """One output tensor, its data (row-major, flat) in the document or behind it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: OutputParameters | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """Tensors out."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Ran
    outputs: list[InferOutput]


class GenerateParameters(RideAlong):
    """Parameters of a generation."""

    stream: bool | None = Field(None, description="if sent, what the route does anyway")


class GenerateRequest(Body):
    """Text in."""

    id: str | None = None
    text_input: str
    parameters: GenerateParameters = Field(default_factory=GenerateParameters)


class GenerateRan(Ran):
    """What ran for one text, and why the text ends."""

    finish_reason: Literal["stop", "length"]


class GenerateResponse(BaseModel):
    """Text out. In a stream each event adds to the text, and the last has the parameters."""

    model_name: str
    model_version: str
    id: str | None = None
    text_output: str
    parameters: GenerateRan | None = None


class IndexRequest(Body):
    """Which models to list."""

    ready: bool = Field(False, description="only those that serve")


class IndexEntry(BaseModel):
    """One version of one model."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str


class LoadRequest(Body):
    """Loading takes no parameters: what a model is stands in its manifest."""

    parameters: Body = Body()


class UnloadParameters(Body):
    """Parameters of unloading."""

    unload_dependents: bool = Field(False, description="no model depends on another here")


class UnloadRequest(Body):
    """Unloading."""

    parameters: UnloadParameters = UnloadParameters()


class Duration(BaseModel):
    """How often, and how long together, in nanoseconds."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Answered requests; a request of many texts counts once for each."""

    success: Duration
    queue: Duration
    compute_infer: Duration


class ModelStatistics(BaseModel):
    """What is counted of one version; `inference_count` is in rows."""

    name: str
    version: str
    inference_count: int
    inference_stats: InferenceStatistics


class Statistics(BaseModel):
    """Statistics of models that are loaded."""

    model_stats: list[ModelStatistics]
