"""Parts as plain torch modules built from safetensors: the reference the exported forms are held against."""

from pathlib import Path

import torch

from models.artifact import Form
from models.checkpoint import load_checkpoint
from service.backends.parts import Parts
from service.backends.torch_arrays import module_part


def open_eager(directory: Path, form: Form, device: torch.device) -> Parts:
    """Build the model of an artifact's safetensors form on `device`."""
    assert form.whole is not None
    model = load_checkpoint((directory / form.whole).parent).to(device)
    return Parts(module_part(model.embed), tuple(module_part(layer) for layer in model.layers), module_part(model.head))
