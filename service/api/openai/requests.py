"""Bodies of the OpenAI dialect: what is served, what has no effect here, and what is refused unless it is neutral."""

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas import Body, ChainField, Temperature, or_say


def _only(*neutral: object) -> AfterValidator:
    """Accept what clients send by default; anything else would change the answer, and is not served."""

    def check(value: object) -> object:
        if value not in neutral:
            raise PydanticCustomError("unsupported", "Not served; send {neutral}, or leave it out", {"neutral": said})
        return value

    said = " or ".join(repr(one) for one in neutral)
    return AfterValidator(check)


PromptField: TypeAlias = Annotated[
    str | list[str] | list[int] | list[list[int]],
    or_say("a text, a list of texts, token ids, or a list of token-id lists"),
]
_StopText: TypeAlias = Annotated[str, Field(min_length=1)]
StopField: TypeAlias = Annotated[
    _StopText | Annotated[list[_StopText], Field(max_length=4)],
    or_say("a text or a list of up to 4, none of them empty"),
]


class OpenAIBody(Body):
    """A body in which null is as good as leaving a field out, and fields without effect here are taken."""

    user: Any = Field(None, description="taken, without effect")
    metadata: Any = Field(None, description="taken, without effect")
    store: Any = Field(None, description="taken, without effect")
    service_tier: Any = Field(None, description="taken, without effect")
    safety_identifier: Any = Field(None, description="taken, without effect")
    prompt_cache_key: Any = Field(None, description="taken, without effect")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body


class StreamOptions(Body):
    """What a stream tells beside text."""

    include_usage: bool = Field(False, description="a last chunk with the usage of the whole request")
    include_obfuscation: bool = Field(False, description="taken, without effect")


class CompletionRequest(OpenAIBody):
    """Prompts to continue. Null is as good as leaving a field out."""

    model: str
    version: str | None = Field(None, description="of the model; the latest if left out")
    prompt: PromptField
    chain: ChainField = Field(
        "full", description="'full', 'memory', '0-3,5,5,7-11', a list of layers, or one of these per prompt"
    )
    max_tokens: int = Field(16, ge=1, le=1 << 20)
    temperature: Temperature = Field(1.0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps every token")
    n: int = Field(1, ge=1, le=128, description="choices per prompt")
    seed: int | None = Field(None, ge=0, lt=1 << 64, description="the same request with the same seed answers the same")
    stop: StopField | None = None
    logprobs: int | None = Field(None, ge=0, le=5, description="alternatives to report with each token")
    echo: bool = Field(False, description="the prompt before each choice's text")
    stream: bool = False
    stream_options: StreamOptions | None = None
    best_of: int = Field(1, ge=1, description="not served beyond n")
    suffix: Annotated[str, _only("")] = Field("", description="not served")
    frequency_penalty: Annotated[float, _only(0)] = Field(0, description="not served but for 0")
    presence_penalty: Annotated[float, _only(0)] = Field(0, description="not served but for 0")
    logit_bias: Annotated[dict[str, float], _only({})] = Field(default_factory=dict, description="not served")

    @field_validator("echo")
    @classmethod
    def _alone(cls, echo: bool, info: ValidationInfo) -> bool:
        if echo and info.data.get("logprobs") is not None:
            raise PydanticCustomError(
                "conflict", "Not with logprobs; leave one out, or POST /predict with mode 'score'"
            )
        return echo

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, options: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream"):
            raise PydanticCustomError("conflict", "Only with stream true; set it, or leave this out")
        return options

    @field_validator("best_of")
    @classmethod
    def _all_returned(cls, best_of: int, info: ValidationInfo) -> int:
        if best_of > info.data.get("n", best_of):
            raise PydanticCustomError("conflict", "Not more than n, for all choices are returned; raise n")
        return best_of


class ChatRequest(OpenAIBody):
    """A conversation. No model has a template for one yet, so that every answer is a refusal."""

    model_config = ConfigDict(extra="ignore")

    model: str
    version: str | None = None
    messages: list[dict[str, Any]]
