"""What a model's own authors say of choosing tokens. Knows no request and draws nothing."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

COLDEST = 1e-3  # below, quotients of logits leave float32


class SamplingSpec(BaseModel):
    """Defaults for requests that say nothing; None where the model says nothing either."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False, description="0 is greedy")
    top_k: int | None = Field(None, ge=0, description="0 keeps every token")
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1, description="where a dialect has no limit of its own")
    not_served: tuple[str, ...] = Field((), description="what else the model says, and no request gets here")

    @field_validator("temperature")
    @classmethod
    def _greedy_or_warm(cls, temperature: float | None) -> float | None:
        if temperature is not None and 0 < temperature < COLDEST:
            raise ValueError(f"should be 0 (greedy) or at least {COLDEST}")
        return temperature
