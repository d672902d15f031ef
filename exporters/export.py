"""A checkpoint to one version of a model repository: written, held against eager torch, hashed, published.

Knows what the manifest says of a model; knows neither how its formats are written nor who reads them.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import models
from exporters import quantized
from exporters.describe_encoder import encoder_spec
from exporters.describe_language import language_spec
from exporters.forms import LOSSY, Report, write_forms
from exporters.heldout import MAX_LOSS, read_heldout
from exporters.parts import Part, Parts, row_cost, step_cost, visit_cost
from exporters.publish import Exported, file_records, new_version
from exporters.split import split
from models.artifact import Form, Format, LayersSpec, Manifest, file_record
from models.checkpoint import load_checkpoint, read_raw
from models.errors import ArtifactError, InputError, UnknownModelError
from models.layered import LayeredModel
from models.lm.model import LanguageModel
from models.lm.wrapping import OURS
from models.shards import Shards
from models.vision import pixels
from models.vision.stages import Stages
from models.vision.vit import VisionTransformer

FORMATS: tuple[Format, ...] = get_args(Format)
# Those that lose nothing.
EXACT: tuple[Format, ...] = ("onnx", "torchscript", "safetensors")

# Facts a model card states in a sentence or in its table.
_CARD_FACTS = {"licence": r"(?i)\blicen[cs]e:\s*(\w[\w.+-]*\w)", "recipe": r"(?m)^\| command \| `([^`]+)`"}


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    formats: Sequence[Format] = EXACT,
    name: str | None = None,
    version: str = "1",
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
    origin: Mapping[str, str] = MappingProxyType({}),
    allow_loss: bool = False,
    timing: bool = False,
) -> Exported:
    """Export a checkpoint directory; `origin` is what its provenance says beside what the directory tells.

    A format that cannot be written or differs from eager torch is left out and told in `refused`; so is one of fewer
    bits that loses too many answers on held-out samples, unless `allow_loss`. Raises ArtifactError
    if none is left, if the checkpoint is unusable or if the version exists already; and unless it is for `timing`, if
    its weights were not trained in its residual form.
    """
    name = name or checkpoint.resolve().name
    model = load_checkpoint(checkpoint)
    if not timing:
        _refuse_untrained(model, checkpoint)
    parts = split(model)
    with new_version(repository, name, version, overwrite) as folder:
        language, encoder = language_spec(model, checkpoint, folder), encoder_spec(model, checkpoint, folder)
        is_lossy = any(format in LOSSY for format in formats)
        heldout = read_heldout(checkpoint, model, parts) if is_lossy else None
        bound = 1.0 if allow_loss else MAX_LOSS
        forms, refused = write_forms(parts, checkpoint, folder, formats, report, heldout, bound)
        if not forms:
            reasons = "; ".join(f"{format}: {reason}" for format, reason in refused.items())
            raise ArtifactError(f"no format of {checkpoint} could be exported: {reasons}")
        manifest = Manifest(
            name=name,
            version=version,
            kind=model.kind,
            inputs=parts.inputs,
            outputs=parts.outputs,
            layers=_layers(model, parts),
            language=language,
            encoder=encoder,
            sequence=parts.sequence,
            **_classes(model, checkpoint),
            forms=forms,
            files=file_records(folder),
            provenance={**_provenance(checkpoint, forms), **_whereabouts(model), **origin},
        )
        manifest.write(folder)
    return Exported(repository / name / version, manifest, refused)


def find_checkpoint(model: str) -> Path:
    """The directory of a checkpoint given by path, or by the name of a shipped one. Raises UnknownModelError."""
    shipped = Path(models.__file__).parent / "checkpoints"
    for directory in (Path(model), shipped / model):
        if (directory / "config.json").is_file():
            return directory
    names = sorted(path.parent.name for path in shipped.glob("*/config.json"))
    raise UnknownModelError(f"{model!r} is neither a directory with a config.json nor one of the shipped {names}")


def parse_formats(text: str) -> tuple[Format, ...]:
    """Read `onnx,torchscript`. Raises InputError naming what is no format."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise InputError(f"{unknown} in {text!r} are no formats; choose from {','.join(FORMATS)}")
    return tuple(format for format in FORMATS if format in names)


def _layers(model: LayeredModel, parts: Parts) -> LayersSpec | None:
    """None for a network that is served whole."""
    if not parts.layers:
        return None
    cost = tuple(_visit_cost(parts, part) for part in parts.layers)
    is_trained = model.config.residual.is_trained if isinstance(model, LanguageModel) else True
    return LayersSpec(count=len(cost), residual_form=model.residual_form, is_trained=is_trained, cost=cost)


def _refuse_untrained(model: LayeredModel, checkpoint: Path) -> None:
    """Raise ArtifactError if the model's answers would be those of no model that was ever trained."""
    if isinstance(model, LanguageModel) and not model.config.residual.can_answer:
        raise ArtifactError(
            f"{checkpoint} has the residual form {model.residual_form} and weights not trained in it, so that "
            "its answers mean nothing; train it on (arith: python -m training.adapt), or have it for measuring time "
            "alone by fathom export --timing"
        )


def _visit_cost(parts: Parts, layer: Part) -> int:
    """Of one row; of texts and sequences one token, one step."""
    if parts.sequence:
        return step_cost(layer)
    is_per_token = parts.cached or parts.text_sizes is not None
    return visit_cost(layer.module) if is_per_token else row_cost(layer)


def _classes(model: LayeredModel, checkpoint: Path) -> dict[str, Any]:
    """What a client needs to know of an image classifier: how pixels are prepared, what its classes are called."""
    if not isinstance(model, VisionTransformer | Stages):
        return {}
    raw = read_raw(checkpoint)
    found = pixels.labels(raw)
    if found and len(found) != model.num_classes:
        raise ArtifactError(f"{checkpoint} names {len(found)} classes and its classifier has {model.num_classes}")
    return {"image": pixels.image_spec(checkpoint, raw), "classes": found}


def _whereabouts(model: LayeredModel) -> dict[str, str]:
    """Which blocks of a network of stages the layers are."""
    names = model.layer_names if isinstance(model, Stages) else ()
    return {"layers": f"{names[0]} to {names[-1]}"} if names else {}


def _provenance(checkpoint: Path, forms: Mapping[Format, Form]) -> dict[str, str]:
    """Where the weights come from and which libraries wrote the files."""
    card = checkpoint / "README.md"
    text = card.read_text() if card.exists() else ""
    found = {fact: re.search(pattern, text) for fact, pattern in _CARD_FACTS.items()}
    libraries = [
        "torch",
        *(("onnx", "onnxscript") if "onnx" in forms else ()),
        *(("torchao",) if any(format in quantized.BITS for format in forms) else ()),
    ]
    done = read_raw(checkpoint).get(OURS, {}).get("done", ())
    return {
        "checkpoint": checkpoint.resolve().name,
        **({"passes": "; ".join(done)} if done else {}),
        "weights_sha256": _weights_sha256(checkpoint),
        **{fact: match[1] for fact, match in found.items() if match},
        **{library: installed(library) for library in libraries},
    }


def _weights_sha256(checkpoint: Path) -> str:
    """Of the file of weights, or of the hashes of its shards."""
    hashes = [file_record(checkpoint / file).sha256 for file in Shards(checkpoint).files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
