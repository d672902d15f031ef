"""Bodies of the OpenAI dialect: what is served, what has no effect here, and what is refused unless it is neutral."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas import Body, ChainChoice, Temperature, or_say


def _only(*neutral: object) -> AfterValidator:
    """Accept what clients send by default; anything else would change the answer, and is not served."""

    def check(value: object) -> object:
        if value not in neutral:
            raise PydanticCustomError("unsupported", "Not served; send {neutral}, or leave it out", {"neutral": said})
        return value

    said = " or ".join(repr(one) for one in neutral)
    return AfterValidator(check)


_MAX_TOKENS = 1 << 20
_THE_MODELS = "what the model brings (GET /models: sampling), else"
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


class GenerationRequest(OpenAIBody, ChainChoice):
    """What every request for text may say."""

    model: str = Field(description="name of a model, or 'model@version' with a version or label")
    version: str | None = Field(
        None, description="of the model, or a label; without one the newest, or the split decides"
    )
    temperature: Temperature | None = Field(None, description=f"if left out, {_THE_MODELS} 1")
    top_p: float | None = Field(None, gt=0, le=1, description=f"if left out, {_THE_MODELS} 1")
    top_k: int | None = Field(None, ge=0, description=f"0 keeps every token; if left out, {_THE_MODELS} 0")
    n: int = Field(1, ge=1, le=128, description="choices per prompt")
    seed: int | None = Field(None, ge=0, lt=1 << 64, description="the same request with the same seed answers the same")
    stop: StopField | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, _only(0)] = Field(0, description="not served but for 0")
    presence_penalty: Annotated[float, _only(0)] = Field(0, description="not served but for 0")
    logit_bias: Annotated[dict[str, float], _only({})] = Field(default_factory=dict, description="not served")

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, options: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream"):
            raise PydanticCustomError("conflict", "Only with stream true; set it, or leave this out")
        return options

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """Prompts to continue. Null is as good as leaving a field out."""

    prompt: PromptField
    max_tokens: int = Field(16, ge=1, le=_MAX_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5, description="alternatives to report with each token")
    echo: bool = Field(False, description="the prompt before each choice's text")
    best_of: int = Field(1, ge=1, description="not served beyond n")
    suffix: Annotated[str, _only("")] = Field("", description="not served")

    @field_validator("echo")
    @classmethod
    def _alone(cls, echo: bool, info: ValidationInfo) -> bool:
        if echo and info.data.get("logprobs") is not None:
            raise PydanticCustomError(
                "conflict", "Not with logprobs; leave one out, or POST /predict with mode 'score'"
            )
        return echo

    @field_validator("best_of")
    @classmethod
    def _all_returned(cls, best_of: int, info: ValidationInfo) -> int:
        if best_of > info.data.get("n", best_of):
            raise PydanticCustomError("conflict", "Not more than n, for all choices are returned; raise n")
        return best_of


class TextPart(Body):
    """A part of a message. Others than text are not served."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[TextPart], or_say("a text, or a list of parts of type 'text'")]
    name: str | None = Field(None, description="of who speaks; the model's template decides whether it shows")

    def for_template(self) -> dict[str, str]:
        """As templates expect it; parts become lines of one text."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text, **({} if self.name is None else {"name": self.name})}


class ChatRequest(GenerationRequest):
    """A conversation to continue. Null is as good as leaving a field out."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=_MAX_TOKENS, description="the older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_MAX_TOKENS, description="if left out, what the model brings, else as many as it has room for"
    )
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20, description="alternatives to report with each token")
    response_format: Annotated[dict[str, Any], _only({"type": "text"})] = Field(
        default_factory=lambda: {"type": "text"}, description="not served but for text"
    )
    modalities: Annotated[list[str], _only(["text"])] = Field(
        default_factory=lambda: ["text"], description="not served but for text"
    )
    tools: Annotated[list[Any], _only([])] = Field(default_factory=list, description="not served")

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, limit: int, info: ValidationInfo) -> int:
        if info.data.get("max_tokens") not in (None, limit):
            raise PydanticCustomError("conflict", "Not another number than max_tokens; leave that out")
        return limit

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, top: int, info: ValidationInfo) -> int:
        if not info.data.get("logprobs"):
            raise PydanticCustomError("conflict", "Only with logprobs true; set it, or leave this out")
        return top

    @property
    def limit(self) -> int | None:
        """Tokens of one answer, if anything was said of them."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_alternatives(self) -> int | None:
        """Alternatives to report with each token, or None to report no token."""
        return (self.top_logprobs or 0) if self.logprobs else None


class EmbeddingRequest(OpenAIBody, ChainChoice):
    """Texts to embed. Null is as good as leaving a field out."""

    model: str = Field(description="name of a model, or 'model@version' with a version or label")
    version: str | None = Field(
        None, description="of the model, or a label; without one the newest, or the split decides"
    )
    input: PromptField
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="not served but for the model's own")
    truncate: bool | None = Field(None, description="encoders: cut texts that are too long instead of refusing them")
    prompt: str | None = Field(None, description="encoders: the name of one of the model's prompts, put before a text")
