"""Settings of a server: the only place that reads the environment (`FATHOM_*`), once."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.errors import FathomError
from service.backends.open import BackendName, Device
from service.backends.protocol import Dtype

PREFIX = "FATHOM_"


class SettingsError(FathomError):
    """A setting that is unknown or out of range."""


def _parsed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"no valid JSON at character {error.pos}: {error.msg}") from error


def _listed(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _counts(value: object) -> object:
    return tuple(listed) if isinstance(listed := _listed(value), list) else value


def _place(value: object) -> object:
    """A URL stays text; "s3://bucket" is no path. file:///models is the folder /models."""
    if not isinstance(value, str) or "://" not in value:
        return Path(value) if isinstance(value, str) else value
    return Path(value.removeprefix("file://")) if value.startswith("file://") else value.rstrip("/")


class Settings(BaseSettings):
    """Defaults start a working CPU server. Sizes in bytes, times in seconds, lengths in visits, rows or tokens."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    repository: Annotated[Path | str, BeforeValidator(_place)] = Field(
        Path("repository"),
        description="folder of <model>/<version>/manifest.json, or URL of one such as s3://bucket/models",
    )
    cache: Path | None = Field(
        None, description="where a repository with a URL is copied to; none is fathom in the user's cache directory"
    )
    repository_key: Path | None = Field(
        None, description="Ed25519 public key in PEM; with one, versions and settings that it did not sign are refused"
    )
    reload_s: float = Field(0.0, ge=0, le=86400, description="how often to look for changes of the repository; 0 never")
    models_bytes: int = Field(
        0, ge=0, description="files of models that are loaded at once, the others on first use; 0 is no bound"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    grpc_port: int | None = Field(None, ge=0, le=65535, description="port for gRPC; without one there is no gRPC")
    backend: BackendName = Field(
        "auto", description="runtime; auto takes onnx, torchscript, eager, pt2, aoti, or fewer bits"
    )
    device: Device = Field("cpu", description="where models run")
    dtype: Dtype = Field(
        "auto", description="precision of the eager backend; auto is float32 on a CPU, as stored on a GPU"
    )
    prepack: bool = Field(
        True,
        description="let ONNX Runtime lay weights out for speed; without, those of large models stay mapped from their "
        "files and are shared between versions and processes",
    )
    num_threads: int = Field(
        0, ge=0, le=1024, description="threads of one layer call; 0 is all cores for large layers, one for small"
    )
    timing: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (),
        description="models, by name and separated by commas, to serve for measuring time although their weights were "
        "not trained in their residual form and their answers mean nothing",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=1024, description="ranks that share each language model; 1 runs it in this process"
    )
    pipeline_parallel: int = Field(
        1, ge=1, le=1024, description="stages that layers of a language model are dealt out to, each of so many ranks"
    )
    pipeline_layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_counts)] = Field(
        (), description="layers of each stage, separated by commas; none: as even as they go"
    )
    step_deadline_s: float = Field(20.0, gt=0, description="how long ranks may take for one pass before they are lost")
    group_timeout_s: float = Field(
        30.0, gt=0, description="how long ranks wait for each other; more than the step deadline, less than a request's"
    )
    rank_silence_s: float = Field(
        1.5, gt=0.5, description="how long a rank may show no sign of life before it is lost; beats come twice a second"
    )
    ranks_address: str | None = Field(
        None, description="tcp://host:port where ranks of other machines come to; without it they are started here"
    )
    ranks_secret: Path | None = Field(None, description="file with the secret that ranks of other machines know")
    warm_up: bool = Field(True, description="run a model once before it is ready")
    max_batch_rows: int = Field(64, ge=1, le=65536, description="rows of one pass")
    max_batch_tokens: int = Field(8192, ge=1, description="tokens of one pass, padding included")
    max_prefill_tokens: int = Field(512, ge=1, description="tokens of prompts that one step reads before others go on")
    max_queue_requests: int = Field(4096, ge=1, description="samples that may wait, per model")
    max_queue_rows: int = Field(65536, ge=1, description="rows that may wait, per model")
    max_queue_tokens: int = Field(1 << 20, ge=1, description="tokens that may wait, per model")
    max_client_rows: int | None = Field(None, ge=1, description="rows of one client that may wait, per model")
    max_request_s: float | None = Field(None, gt=0, description="how long a request may wait and run; none: for ever")
    max_chain_factor: float = Field(4.0, ge=1, le=64, description="longest chain, as a multiple of the layer count")
    max_inputs: int = Field(4096, ge=1, description="inputs of one request")
    max_body_bytes: int = Field(16 << 20, ge=1024, description="largest request body")
    degrade: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_parsed)] = Field(
        {},
        description="per model chains to fall back to under pressure, ever shorter; JSON such as "
        '{"arith": ["0-4,6-11", "0-3,8-11"]}',
    )
    degrade_wait_s: float = Field(1.0, gt=0, description="wait from which a model with such chains falls back")
    degrade_fraction: float = Field(0.5, gt=0, le=1, description="part of a queue limit from which it does")
    response_cache_bytes: int = Field(0, ge=0, description="memory for answers to give again, per model; 0 keeps none")
    kv_bytes: int = Field(1 << 30, ge=1 << 20, description="memory for keys and values, per model")
    kv_page_tokens: int = Field(16, ge=1, le=1024, description="tokens of one page of keys and values")
    session_idle_s: float = Field(300.0, gt=0, le=604800, description="how long a session may be idle before it ends")
    max_sessions: int = Field(1024, ge=1, description="open sessions of recurrent models, per model")
    max_client_sessions: int = Field(256, ge=1, description="open sessions of one client, per model")
    session_bytes: int = Field(256 << 20, ge=1024, description="memory for the states of open sessions, per model")
    search_bytes: int = Field(64 << 20, ge=1 << 16, description="memory for shared prefixes, per search")
    verifier_url: str | None = Field(None, description="endpoint of the search reward 'verifier'; gets POSTs")
    verifier_timeout_s: float = Field(10.0, gt=0, le=600, description="how long a verifier may take per answer")
    verifier_max_retries: int = Field(2, ge=0, le=10, description="tries after one that the endpoint failed")
    memory: str = Field(
        "",
        description="remembered chains and jobs: path of a SQLite file or SQLAlchemy URL; "
        "empty is .fathom.db in the repository, or nothing lasting where that cannot be written",
    )
    max_jobs_queued: int = Field(64, ge=0, description="search jobs that may wait")
    max_jobs_running: int = Field(2, ge=1, le=256, description="search jobs that run at once")
    max_jobs_kept: int = Field(256, ge=0, description="search jobs kept after their end")
    access_log: bool = Field(True, description="one log line for each request")
    drain_s: float = Field(30.0, ge=0, description="how long accepted requests may take after SIGTERM")

    @property
    def folder(self) -> Path:
        """The repository on this machine: itself, or the copy of one with a URL."""
        if isinstance(self.repository, Path):
            return self.repository
        cache = self.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fathom"
        return cache / hashlib.sha256(self.repository.encode()).hexdigest()[:16]


def read_settings(environment: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Settings from the environment, then from `overrides` that are not None. Raises SettingsError by name."""
    environment = os.environ if environment is None else environment
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown settings {unknown}; known are {sorted(known)}")
    read = {
        name: environment[key]
        for name in Settings.model_fields
        for key in environment
        if key.upper() == f"{PREFIX}{name}".upper()
    }
    chosen = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings.model_validate({**read, **chosen})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise SettingsError(f"{PREFIX}{name.upper()} = {first['input']!r}: {first['msg']}") from error
