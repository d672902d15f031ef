"""`<repository>/<model>/settings.json`: which versions of a model serve, under which labels, within which limits.

Knows the form of the file and the names in it; opens no model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from models.artifact import Name, Record
from models.errors import ArtifactError
from service.backends.open import BackendName
from service.settings import Settings

# What a model may set for itself; bounds and meaning are those of the settings of the server.
LIMITS = (
    "num_threads",
    "tensor_parallel",
    "pipeline_parallel",
    "pipeline_layers",
    "step_deadline_s",
    "group_timeout_s",
    "rank_silence_s",
    "ranks_address",
    "max_batch_rows",
    "max_batch_tokens",
    "max_prefill_tokens",
    "max_queue_requests",
    "max_queue_rows",
    "max_queue_tokens",
    "max_client_rows",
    "max_chain_factor",
    "response_cache_bytes",
    "kv_bytes",
    "kv_page_tokens",
    "search_bytes",
)
_fields: dict[str, Any] = {name: (field.annotation, field) for name, field in Settings.model_fields.items()}
_Limits: type[BaseModel] = create_model(
    "_Limits", __config__=ConfigDict(extra="forbid", strict=True), **{name: _fields[name] for name in LIMITS}
)


def _as_settings(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits within the bounds of the settings of the server."""
    try:
        _Limits.model_validate(limits)
    except ValidationError as error:
        first = error.errors()[0]
        name, reason = first["loc"][0], first["msg"]
        known = f"; known are {', '.join(LIMITS)}" if first["type"] == "extra_forbidden" else ""
        raise PydanticCustomError("limit", "{told}", {"told": f"{name}: {reason}{known}"}) from error
    return limits


def _some_weight(split: dict[str, int]) -> dict[str, int]:
    if split and not sum(split.values()):
        raise PydanticCustomError("split", "the weights are all 0; give one of them more")
    return split


class Newest(Record):
    """So many of the newest versions."""

    latest: int = Field(ge=1)


VersionPolicy: TypeAlias = Literal["latest", "all"] | Newest | Annotated[tuple[Name, ...], Field(min_length=1)]


class ModelSettings(Record):
    """What a model's folder says of its serving; everything may be left out."""

    versions: VersionPolicy = Field("latest", description='"latest", {"latest": 2}, "all", or a list of versions')
    labels: dict[Name, Name] = Field(default_factory=dict, description="versions by a name that requests may use")
    split: Annotated[dict[Name, Annotated[int, Field(ge=0)]], AfterValidator(_some_weight)] = Field(
        default_factory=dict, description="weights of labels or versions, for requests that name none"
    )
    backend: BackendName | None = None
    limits: Annotated[dict[str, Any], AfterValidator(_as_settings)] = Field(default_factory=dict)
    warm_up: tuple[dict[str, Any], ...] = Field((), description="bodies of POST /predict, without model and version")

    def version_of(self, name: str) -> str:
        """The version behind a label; any other name is a version."""
        return self.labels.get(name, name)

    @property
    def named(self) -> dict[str, str]:
        """The versions that must be there, with the field that names them."""
        of_policy = dict.fromkeys(self.versions, "versions") if isinstance(self.versions, tuple) else {}
        of_split = {self.version_of(name): f"split.{name}" for name in self.split}
        return {**of_policy, **of_split, **{version: f"labels.{label}" for label, version in self.labels.items()}}

    @property
    def weights(self) -> dict[str, int]:
        """The split by version."""
        weights: dict[str, int] = {}
        for name, weight in self.split.items():
            version = self.version_of(name)
            weights[version] = weights.get(version, 0) + weight
        return weights

    def wanted(self, versions: Sequence[str]) -> list[str]:
        """Those of `versions` (oldest first) that should serve: by the policy, and whatever a label or split names."""
        if isinstance(self.versions, Newest):
            chosen = set(versions[-self.versions.latest :])
        elif self.versions == "latest":
            chosen = set(versions[-1:])
        elif self.versions == "all":
            chosen = set(versions)
        else:
            chosen = set(self.versions)
        return [version for version in versions if version in chosen or version in self.named]

    def check(self, place: str, versions: Sequence[str]) -> None:
        """Raise ArtifactError naming the field if it names what is not there."""
        for version, field in self.named.items():
            if version not in versions:
                raise ArtifactError(f"{place}: {field}: there is no version {version!r}; there are {list(versions)}")
        for label in self.labels:
            if label in versions:
                raise ArtifactError(f"{place}: labels.{label}: a version has this name; choose another label")

    @property
    def opening(self) -> str:
        """What a version is opened with; it is opened again when this changes."""
        return json.dumps([self.backend, self.limits, self.warm_up], sort_keys=True)

    def over(self, settings: Settings) -> Settings:
        """The settings of the server with those of the model in their place."""
        backend = {} if self.backend is None else {"backend": self.backend}
        return settings.model_copy(update={**self.limits, **backend})


def parse_model_settings(content: bytes, place: Path | str) -> ModelSettings:
    """The settings in a file's content. Raises ArtifactError naming file, field and remedy."""
    try:
        return ModelSettings.model_validate(_document(content, place))
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        loc = first["loc"]
        if loc and loc[0] == "versions":
            raise ArtifactError(
                f'{place}: versions: {first["input"]!r:.60} is no policy; write "latest", {{"latest": 2}}, "all", '
                "or a list of versions"
            ) from error
        field = ".".join(str(part) for part in loc if part != "[key]") or "the document"
        remedy = f"known fields are {', '.join(ModelSettings.model_fields)}" if _is_unknown(first) else "correct it"
        reason = "there is no such field" if _is_unknown(first) else f"{first['msg']}{_came(first)}"
        raise ArtifactError(f"{place}: {field}: {reason}; {remedy}") from error


def _document(content: bytes, place: Path | str) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ArtifactError(f"{place} is no JSON document: {error}; correct it, or remove it") from error


def _is_unknown(error: Mapping[str, Any]) -> bool:
    return bool(error["type"] == "extra_forbidden")


def _came(error: Mapping[str, Any]) -> str:
    value = error["input"]
    return f"; {value!r:.60} came" if isinstance(value, str | int | float) else ""
