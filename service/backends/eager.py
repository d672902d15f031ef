"""Parts as plain torch modules built from safetensors: the reference the exported forms are held against."""

from pathlib import Path

import torch

from models.artifact import Form
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, BackendError
from service.backends.parts import Parts
from service.backends.torch_arrays import module_part


def open_eager(directory: Path, form: Form, device: torch.device) -> Parts:
    """Build the model of an artifact's safetensors form on `device`. Raises BackendError if it does not load."""
    assert form.whole is not None
    try:
        model = load_checkpoint((directory / form.whole).parent).to(device)
    except ArtifactError as error:
        raise BackendError(f"{form.whole} does not load in torch: {error}") from error
    return Parts(module_part(model.embed), tuple(module_part(layer) for layer in model.layers), module_part(model.head))
