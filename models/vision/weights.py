"""An image classifier's directory to a model: tensors mapped from their files one at a time."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.layered import TensorStack
from models.shards import Shards, load_into, refuse_differences
from models.vision import huggingface, timm
from models.vision.convnext import ConvNeXt
from models.vision.naming import Architecture
from models.vision.pixels import prepared_size
from models.vision.resnet import ResNet


def load(directory: Path, dtype: torch.dtype | None = torch.float32) -> TensorStack:
    """The model of a directory of transformers or timm, ready for inference, in `dtype`, or None for as it is stored.

    What needs no conversion stays mapped from its file. Raises ArtifactError naming tensors that are missing,
    unexpected or of another shape, and what config.json says that is not computed.
    """
    raw = _config(directory)
    shards = Shards(directory)
    architecture = huggingface.find(raw, shards) if "model_type" in raw else timm.find(raw, directory)
    with torch.device("meta"):
        network = architecture.build(raw, shards)
    pieces = {name: architecture.piece(name) for name, _ in network.named_parameters()}
    _check_names(directory, {stored for stored, _, _ in pieces.values()}, architecture, shards)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    tensors = {name: partial(_read, shards, *piece, shapes[name]) for name, piece in pieces.items()}
    load_into(network, tensors, dtype)
    model = network.stack() if isinstance(network, ResNet | ConvNeXt) else network
    assert isinstance(model, TensorStack)
    return model.eval()


def _config(directory: Path) -> Mapping[str, Any]:
    """config.json; networks without positions run at the size that images are prepared to."""
    raw: dict[str, Any] = json.loads((directory / "config.json").read_text())
    size = prepared_size(directory) if raw.get("model_type") in ("resnet", "convnext", "convnextv2") else None
    return raw if size is None else {**raw, "image_size": list(size)}


def _check_names(directory: Path, used: set[str], architecture: Architecture, shards: Shards) -> None:
    extra = {name for name in shards.names - used if not any(re.search(end, name) for end in architecture.ignored)}
    refuse_differences(directory, used - shards.names, extra)


def _read(shards: Shards, name: str, place: int, count: int, shape: torch.Size) -> Tensor:
    """A piece of a stored tensor; axes of one that only one of two libraries keeps are left out or put in."""
    tensor = shards.read(name)
    if count > 1 and len(tensor) == count * shape[0]:
        tensor = tensor.chunk(count)[place]
    same = [size for size in tensor.shape if size != 1] == [size for size in shape if size != 1]
    return tensor.reshape(shape) if same else tensor
