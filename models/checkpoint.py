"""A checkpoint directory to a model: which architecture its `config.json` names, and how that is loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from models import catalogue
from models.encoders import weights as encoder_weights
from models.encoders.architectures import ARCHITECTURES as ENCODERS
from models.errors import ArtifactError, FathomError
from models.layered import LayeredModel
from models.lm import weights
from models.lm.architectures import ARCHITECTURES
from models.lm.wrapping import unwrapped
from models.vision import weights as vision_weights
from models.vision.huggingface import ARCHITECTURES as CLASSIFIERS

# What stands for a `model_type` in directories of timm, which say `architecture` instead.
_TIMM = "timm"
# Of each `model_type`: a directory and a precision (None: as stored) to a model.
_LOADERS: Mapping[str, Callable[[Path, torch.dtype | None], LayeredModel]] = {
    **dict.fromkeys(ARCHITECTURES, weights.load),
    **dict.fromkeys(ENCODERS, encoder_weights.load),
    **dict.fromkeys(CLASSIFIERS, vision_weights.load),
    **dict.fromkeys(catalogue.names(), catalogue.load),
    _TIMM: vision_weights.load,
}


def load_checkpoint(directory: Path, dtype: torch.dtype | None = torch.float32) -> LayeredModel:
    """Load a checkpoint directory. Raises ArtifactError for a missing file or an unknown architecture."""
    raw = read_raw(directory)
    model_type = str(raw.get("model_type", _TIMM if "architecture" in raw else None))
    if model_type not in _LOADERS:
        raise _unknown(directory, model_type)
    try:
        return _LOADERS[model_type](directory, dtype)
    except FathomError:
        raise
    except Exception as error:  # a foreign directory can be wrong in any way
        raise ArtifactError(
            f"{directory} does not load as {model_type!r}: {error!r}; save the checkpoint again"
        ) from error


def model_types() -> list[str]:
    """What is read: each `model_type`, and "timm" for directories that say `architecture` instead."""
    return sorted(_LOADERS)


def read_raw(directory: Path) -> dict[str, Any]:
    """What `config.json` says; of a model of ours in another residual form, what it wraps. Raises ArtifactError."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} holds no object; copy the checkpoint again")
    return unwrapped(raw)


def _unknown(directory: Path, model_type: object) -> ArtifactError:
    has_code = "auto_map" in read_raw(directory)
    remedy = (
        "its config.json asks to run code of its own (trust_remote_code), which no checkpoint may here"
        if has_code
        else f"supported are {model_types()}"
    )
    return ArtifactError(f"{directory} holds a {model_type!r} model; {remedy}")
