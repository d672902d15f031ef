"""What a model can become, and why not: every format tried on its first layer, nothing kept.

But for machine code, which takes half a minute: it is made of what `pt2` stores, by a compiler that is there or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exporters.aoti import compiler
from exporters.export import FORMATS
from exporters.forms import Report, write_forms
from exporters.split import split
from models.artifact import Format
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Tried:
    """One format that was written: its largest difference to eager torch, the size of its layer or graph."""

    max_abs: float
    size_bytes: int
    is_layer: bool


@dataclass(frozen=True, slots=True)
class Possible:
    """What came of a model, and what there is to say of formats that were not tried.

    No layers in a network that is served whole.
    """

    kind: str
    num_layers: int
    written: Mapping[Format, Tried]
    refused: Mapping[Format, str]
    untried: Mapping[Format, str]


def try_formats(checkpoint: Path, report: Report = lambda what, done, total: None) -> Possible:
    """Write and verify every format with one layer of the model. Raises ArtifactError for an unusable checkpoint.

    The safetensors form is the checkpoint itself, which is read to get here.
    """
    model = load_checkpoint(checkpoint)
    num_layers = len(model.layers)
    model.layers = model.layers[:1]
    formats = tuple(format for format in FORMATS if format not in ("safetensors", "aoti"))
    with TemporaryDirectory() as folder:
        forms, refused = write_forms(split(model), checkpoint, Path(folder), formats, report)
        written = {
            format: Tried(
                max((difference.max_abs for difference in form.measured), default=0.0),
                sum((Path(folder) / name).stat().st_size for name in form.layers or (str(form.whole),)),
                bool(form.layers),
            )
            for format, form in forms.items()
        }
    untried: dict[Format, str] = {}
    try:
        untried["aoti"] = _compilable(refused)
    except ArtifactError as error:
        refused["aoti"] = str(error)
    return Possible(model.kind, num_layers, written, refused, untried)


def _compilable(refused: Mapping[Format, str]) -> str:
    """What speaks for machine code. Raises ArtifactError saying what speaks against it."""
    if "pt2" in refused:
        raise ArtifactError(refused["pt2"])
    return f"not tried, as it takes half a minute; pt2, of which it is made, can be written and {compiler()} is there"
