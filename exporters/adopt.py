"""Somebody's model to an artifact, as it is: a graph as a whole, a checkpoint directory layer by layer."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exporters.hub import download
from exporters.publish import Exported, file_records, new_version
from models.artifact import Form, Format, Manifest, TensorSpec
from models.datatype import Datatype
from models.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from exporters.forms import Report

_FORMATS: Mapping[str, Format] = {".onnx": "onnx", ".pt": "torchscript", ".pth": "torchscript"}
# The modules that read each format, imported when one is adopted: a runtime takes a second and more to load.
_READERS: Mapping[Format, str] = {"onnx": "exporters.adopt_onnx", "torchscript": "exporters.adopt_torchscript"}
_SPEC = re.compile(r"([^:]+):([A-Z0-9]+):(-?\d+(?:,-?\d+)*)")


def adopt_file(
    file: Path,
    repository: Path,
    name: str,
    version: str = "1",
    given: Sequence[TensorSpec] = (),
    overwrite: bool = False,
) -> Exported:
    """Publish `file` unchanged as the whole graph of a model; `given` says what the file does not.

    Raises ArtifactError for a file that is missing, of another kind, or that the runtime cannot load; InputError if
    `given` contradicts it or something is still unknown.
    """
    if not file.is_file():
        raise ArtifactError(f"{file} does not exist")
    if file.suffix not in _FORMATS:
        raise ArtifactError(f"{file} is none of {', '.join(_FORMATS)}; rename it if it is one of these")
    format = _FORMATS[file.suffix]
    reader = import_module(_READERS[format])
    inputs, outputs = reader.signature(file, {spec.name: spec for spec in given})
    with new_version(repository, name, version, overwrite) as folder:
        (folder / format).mkdir()
        whole = reader.copy(file, folder / format)
        manifest = Manifest(
            name=name,
            version=version,
            kind="tensor",
            inputs=inputs,
            outputs=outputs,
            forms={format: Form(whole=f"{format}/{whole}", tolerance=0.0)},  # the file itself, so no difference
            files=file_records(folder),
            provenance={"file": file.name},
        )
        manifest.write(folder)
    return Exported(repository / name / version, manifest, {})


def adopt_checkpoint(
    source: str,
    revision: str | None,
    given: Sequence[str] | None,
    repository: Path,
    name: str,
    version: str,
    overwrite: bool,
    report: "Report",
) -> Exported:
    """Publish a checkpoint directory, or a model of the hub at a revision, unchanged.

    Raises ArtifactError for a checkpoint that is not computed exactly, InputError for what a directory does not take.
    """
    from exporters.export import export_checkpoint  # torch takes seconds to load

    if given:
        raise InputError(f"--input says {list(given)}, and a checkpoint's config.json says it all; leave --input out")
    if Path(source).is_dir():
        if revision:
            raise InputError(f"{source} is a directory and has no revision {revision!r}; leave --revision out")
        directory, origin = Path(source), {}
    else:
        report(f"download {source}", 0, 1)
        directory = download(source, revision)
        origin = {"checkpoint": source, "revision": directory.name}
    return export_checkpoint(directory, repository, ("safetensors",), name, version, overwrite, report, origin)


def parse_input(text: str) -> TensorSpec:
    """Read `NAME:DATATYPE:SHAPE`, for example `x:FP32:-1,64`. Raises InputError."""
    match = _SPEC.fullmatch(text)
    datatypes = get_args(Datatype)
    if match is None or match[2] not in datatypes:
        raise InputError(f"{text!r} is no input; write NAME:DATATYPE:SHAPE like x:FP32:-1,64, datatypes {datatypes}")
    shape = tuple(int(dim) for dim in match[3].split(","))
    if any(dim == 0 or dim < -1 for dim in shape):
        raise InputError(
            f"shape {match[3]!r} of input {match[1]!r} has a dimension below 1; write -1 for a dynamic one"
        )
    return TensorSpec.model_validate({"name": match[1], "datatype": match[2], "shape": shape})
