"""What a checkpoint directory says beside its weights: how pixels are prepared, at what size, and what classes mean."""

import json
from pathlib import Path
from typing import Any

from models.artifact import ImageSpec
from models.errors import ArtifactError
from models.vision.naming import Raw

PREPROCESSOR = "preprocessor_config.json"
# What transformers' image processors do where nothing is said.
_SCALE = 1 / 255


def image_spec(directory: Path, raw: Raw) -> ImageSpec | None:
    """Mean and deviation that pixels are normalised by; None if the directory does not say. Raises ArtifactError."""
    said = raw.get("pretrained_cfg") or _preprocessor(directory)
    mean, deviation = (
        said.get(long) or said.get(short) for long, short in (("image_mean", "mean"), ("image_std", "std"))
    )
    if mean is None or deviation is None or said.get("do_normalize") is False:
        return None
    for name, values in (("mean", mean), ("std", deviation)):
        if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
            raise ArtifactError(f"{directory} says the images' {name} is {values!r}; it must be a list of numbers")
    scale = said.get("rescale_factor", _SCALE)
    if scale != _SCALE:
        raise ArtifactError(f"{directory / PREPROCESSOR} says rescale_factor = {scale!r}; only 1/255 is supported")
    return ImageSpec(mean=tuple(mean), std=tuple(deviation))


def prepared_size(directory: Path) -> tuple[int, int] | None:
    """Height and width that transformers' image processor gives, None if it does not say."""
    said = _preprocessor(directory)
    size = (said.get("crop_size") if said.get("do_center_crop") else None) or said.get("size")
    if isinstance(size, dict):
        size = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    return (height, width) if type(height) is int and type(width) is int else None


def labels(raw: Raw) -> tuple[str, ...]:
    """Names of the classes in the order of the logits, as far as config.json gives any."""
    if "label_names" in raw:  # timm's: short names, and perhaps texts for them
        texts = raw.get("label_descriptions") or {}
        return tuple(str(texts.get(name, name)) for name in raw["label_names"])
    found = raw.get("id2label") or {}
    try:
        ordered = [str(found[key]) for key in sorted(found, key=int)]
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"config.json says id2label = {found!r}; its keys must be numbers") from error
    return () if ordered == [f"LABEL_{i}" for i in range(len(ordered))] else tuple(ordered)


def _preprocessor(directory: Path) -> dict[str, Any]:
    path = directory / PREPROCESSOR
    try:
        said = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; copy the checkpoint again") from error
    if not isinstance(said, dict):
        raise ArtifactError(f"{path} holds no object; copy the checkpoint again")
    return said
