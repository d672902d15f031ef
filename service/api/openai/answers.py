"""Answers of the OpenAI dialect; `fathom` says which chain ran."""

from typing import Literal

from pydantic import BaseModel, Field

from service.api.schemas import CACHED, DEGRADED


class ErrorObject(BaseModel):
    """What went wrong: value, limit and remedy in the message."""

    message: str
    type: str
    param: str | None = Field(description="the field, if it is about one")
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal under /v1."""

    error: ErrorObject


class Served(BaseModel):
    """What a client needs to name a chain."""

    version: str
    num_layers: int
    max_chain_length: int


class Model(BaseModel):
    """A model that is ready. `name` and `ready` are what clients of KServe's first protocol look for."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="always 0: artifacts carry no date")
    owned_by: str = "fathom"
    name: str
    ready: bool = True
    fathom: Served


class ModelList(BaseModel):
    """The language models that are ready, and in KServe's words the names of all models that are."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[str]


class ChoiceRan(BaseModel):
    """Which chain a choice took, what it cost, and the seed that gives the same again with n 1."""

    version: str
    chain: list[int]
    layers_executed: int = Field(description="visits times passes")
    layers_full: int = Field(description="what the full chain would have executed")
    seed: int
    degraded: bool | None = DEGRADED
    cached: int | None = CACHED


class Logprobs(BaseModel):
    """One entry per token: its own text in the vocabulary, and where it begins in the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] = Field(description="the alternatives asked for, and the token itself")
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A continuation, or in a stream what was added to it; prompt p has the indices p n to p n + n - 1."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    fathom: ChoiceRan | None = Field(None, description="in a stream in the chunk with the finish_reason")


class TokenAlternative(BaseModel):
    """One token in a place: its own text in the vocabulary, and the bytes of that text."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TokenAlternative):
    """A chosen token, with the alternatives that were asked for."""

    top_logprobs: list[TokenAlternative]


class ChatLogprobs(BaseModel):
    """One entry per token."""

    content: list[ChatToken]
    refusal: None = None


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    fathom: ChoiceRan


class Delta(BaseModel):
    """What is added to an answer; the first names the role."""

    role: Literal["assistant"] | None = None
    content: str


class ChatPiece(BaseModel):
    """A piece of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    fathom: ChoiceRan | None = Field(None, description="in the chunk with the finish_reason")


class PromptTokensDetails(BaseModel):
    """What became of the tokens of prompts."""

    cached_tokens: int = Field(description="their layers had been evaluated for an earlier request")


class TokenUsage(BaseModel):
    """Tokens; a prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionResponse(BaseModel):
    """The choices of every prompt in order, or one chunk of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None


class ChatResponse(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatChunk(BaseModel):
    """One chunk of a stream of answers."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatPiece]
    usage: TokenUsage | None = None


class EmbeddingUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingRan(BaseModel):
    """Which chain an input took, and what it cost."""

    version: str
    chain: list[int]
    layers_executed: int
    layers_full: int


class EmbeddingEntry(BaseModel):
    """The embedding of one input: numbers, or their little-endian float32 bytes in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    fathom: EmbeddingRan


class EmbeddingResponse(BaseModel):
    """One embedding per input, in order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage
