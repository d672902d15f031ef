"""The manifest of an exported model: the one contract between exporters and service.

Knows files, hashes and shapes; knows no runtime, no torch and no HTTP. A model repository is a folder
`<model>/<version>/manifest.json` plus the files the manifest names.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.datatype import Datatype
from models.errors import ArtifactError, UnknownModelError
from models.sampling import SamplingSpec

MANIFEST = "manifest.json"
# Beside the versions of a model: how they are to be served. What it may say is the service's affair.
SETTINGS = "settings.json"

Format: TypeAlias = Literal[
    "onnx",
    "torchscript",
    "safetensors",
    "pt2",
    "aoti",
    "onnx-fp16",
    "onnx-bf16",
    "onnx-int8",
    "onnx-int4",
    "onnx-scan",
    "pt2-int8",
    "pt2-int4",
]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
# Looks at the bytes of a version's manifest before they are believed; raises ArtifactError.
Verify: TypeAlias = Callable[[Path, bytes], None]


class Record(BaseModel):
    """An immutable part of the manifest; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TensorSpec(Record):
    """A named input or output, in Open Inference Protocol terms; -1 is a dynamic dimension, the first is the batch."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class LayersSpec(Record):
    """The stack a chain walks over."""

    count: int = Field(ge=1)
    residual_form: str = Field(description="how outputs reach the stream, in the words of `models.lm.residual`")
    is_trained: bool = Field(True, description="whether the weights were trained in this form; else for timing only")
    cost: tuple[int, ...] = Field(description="multiply-accumulates of one visit for one row (one token), per layer")


class LanguageSpec(Record):
    """What a server needs to know of a language model beside its layers."""

    vocab_size: int
    max_length: int = Field(description="prompt and answer together, in tokens")
    num_kv_heads: int
    head_size: int
    eos_token_ids: tuple[int, ...]
    tokenizer: str = Field(description="file name of the Hugging Face tokenizer.json")
    chat_template: str | None = Field(None, description="file name of the Jinja template of conversations")
    special_tokens: dict[str, str] = Field(default_factory=dict, description="texts the template may name")
    sampling: SamplingSpec | None = Field(None, description="of its generation_config.json, for requests silent on it")


class EncoderSpec(Record):
    """What a server needs to know of a text encoder beside its layers."""

    task: Literal["embed", "classify", "tokens", "fill-mask"]
    vocab_size: int
    max_length: int = Field(description="a text, or both of a pair, in tokens")
    tokenizer: str = Field(description="file name of the Hugging Face tokenizer.json")
    lowers_case: bool = Field(False, description="texts are put into lower case before they are tokens")
    has_token_types: bool = Field(description="the graph takes token_types, which tell the texts of a pair apart")
    tells_pairs: bool = Field(False, description="the second text of a pair has the type 1; else all tokens have 0")
    labels: tuple[str, ...] = ()
    scores: Literal["softmax", "sigmoid", "none"] = Field("softmax", description="from outputs to scores of labels")
    mask_token_id: int | None = None
    prompts: dict[str, str] = Field(default_factory=dict, description="texts to put before an input, by name")
    default_prompt: str | None = None

    @property
    def is_pooled(self) -> bool:
        """Whether there is one output a text; else there is one for each token."""
        return self.task in ("embed", "classify")


class SequenceSpec(Record):
    """What a server needs to know of a recurrent model: a visit takes its state in and gives the next one out."""

    max_chunk: int = Field(ge=1, description="steps of one pass at most; longer sequences are walked pass by pass")
    max_trained: int = Field(ge=1, description="steps of the longest sequence the model was trained on")
    vocab_size: int = Field(0, ge=0, description="steps are token ids below it; 0 where steps are numbers")
    state: tuple[TensorSpec, ...] = Field(description="what one visit hands from one pass to the next, zeros at first")


class ImageSpec(Record):
    """How clients prepare pixels: from 0 to 1, minus `mean`, over `std`, for each channel; the input says the size."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Difference(Record):
    """Largest absolute difference to eager torch, measured at export on inputs of one size."""

    batch: int
    length: int
    max_abs: float


class Loss(Record):
    """What a form of fewer bits answers rightly of held-out samples, beside what eager torch does, as parts of one."""

    metric: str
    samples: int
    full: float
    form: float


class Form(Record):
    """One exported format: the parts a chain is run from, the whole graph, or both."""

    embed: str | None = None
    layers: tuple[str, ...] = ()
    head: str | None = None
    whole: str | None = None
    tolerance: float = Field(description="the bound the export was held to")
    is_relative: bool = Field(False, description="whether the bound is a part of the largest output")
    measured: tuple[Difference, ...] = ()
    loss: Loss | None = None

    @property
    def has_parts(self) -> bool:
        return self.embed is not None

    @property
    def parts(self) -> tuple[str, ...]:
        """The files that a chain is run from: embed, every layer, head."""
        return tuple(name for name in (self.embed, *self.layers, self.head) if name)


class FileRecord(Record):
    """Size and content hash of one file of the artifact."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int


class Manifest(Record):
    """Everything about one version of one model that can be known without opening its graphs."""

    schema_version: Literal[1] = 1
    name: Name
    version: Name
    kind: Literal["causal-lm", "encoder", "tensor", "sequence"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: LayersSpec | None = None
    language: LanguageSpec | None = None
    encoder: EncoderSpec | None = None
    sequence: SequenceSpec | None = None
    image: ImageSpec | None = None
    classes: tuple[str, ...] = Field((), description="names of the classes, in the order of the logits")
    forms: dict[Format, Form]
    files: dict[str, FileRecord]
    provenance: dict[str, str] = Field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Layers a chain can name; 0 for a network that is served whole."""
        return self.layers.count if self.layers else 0

    @property
    def artifact_hash(self) -> str:
        """sha256 over the names and hashes of the files: changes when the graphs, weights or tokenizer do."""
        listed = "".join(f"{record.sha256} {name}\n" for name, record in sorted(self.files.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write `manifest.json`, human-readable."""
        (directory / MANIFEST).write_text(self.model_dump_json(indent=2) + "\n")


def read_manifest(directory: Path, verify: Verify | None = None) -> Manifest:
    """Read and check one version's folder, hashes included; `verify` sees the manifest's bytes first.

    Raises ArtifactError naming the file that is missing, of another size or of another content.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; export the model again") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if verify:
        verify(directory, content)
    manifest = parse_manifest(content, path)
    for name, record in manifest.files.items():
        _check_file(directory, name, record)
    return manifest


def parse_manifest(content: bytes, path: Path | str) -> Manifest:
    """The manifest in a file's content; `path` is for messages. Looks at no other file. Raises ArtifactError."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ArtifactError(
            f"{path} is not a valid manifest: {place}: {first['msg']}; export the model again"
        ) from error
    for name in _named_files(manifest):
        if name not in manifest.files:
            raise ArtifactError(f"{path} uses {name!r} without listing its hash; export the model again")
    return manifest


def check_inside(name: str, path: Path | str) -> None:
    """Raise ArtifactError if a manifest's file name leads out of the version's folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
        raise ArtifactError(f"{path} names {name!r}, which lies outside its folder")


def file_record(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


def list_versions(repository: Path) -> dict[str, list[str]]:
    """Versions of each model of a repository that have a manifest, oldest first (numbers before names)."""
    versions: dict[str, list[str]] = {}
    for path in sorted(repository.glob(f"[!.]*/[!.]*/{MANIFEST}")):
        versions.setdefault(path.parent.parent.name, []).append(path.parent.name)
    return {name: sorted(found, key=version_order) for name, found in versions.items()}


def find_version(repository: Path, name: str, version: str | None = None) -> Path:
    """The folder of a model's version, the latest if none is named. Raises UnknownModelError listing what is there."""
    versions = list_versions(repository)
    if name not in versions:
        raise UnknownModelError(f"no model {name!r}; the repository has {sorted(versions)}")
    chosen = version or versions[name][-1]
    if chosen not in versions[name]:
        raise UnknownModelError(f"model {name!r} has no version {chosen!r}; it has {versions[name]}")
    return repository / name / chosen


def version_order(version: str) -> tuple[int, int, str]:
    """Sort key of versions: numbers by value, then names."""
    return (0, int(version), version) if version.isdecimal() else (1, 0, version)


def _check_file(directory: Path, name: str, record: FileRecord) -> None:
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ArtifactError(f"the manifest names {name!r}, which lies outside {directory}")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; export the model again")
    found = file_record(path)
    if found != record:
        raise ArtifactError(
            f"{path} is not the exported file: {found.size_bytes} bytes with sha256 {found.sha256[:12]}, "
            f"the manifest says {record.size_bytes} bytes with {record.sha256[:12]}; export the model again"
        )


def _named_files(manifest: Manifest) -> Iterator[str]:
    for form in manifest.forms.values():
        yield from (name for name in (form.embed, *form.layers, form.head, form.whole) if name)
    if manifest.language:
        yield from filter(None, (manifest.language.tokenizer, manifest.language.chat_template))
    if manifest.encoder:
        yield manifest.encoder.tokenizer
