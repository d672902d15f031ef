"""Parts as plain torch modules built from safetensors: the reference the exported forms are held against."""

from pathlib import Path

import torch

from models.artifact import Form
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, BackendError
from models.layered import LayeredModel, Whole
from service.backends.parts import Parts, unchanged
from service.backends.torch_arrays import Opened, TorchArrays, module_part


def open_eager(directory: Path, form: Form, device: torch.device, dtype: torch.dtype | None) -> Opened:
    """Build the model of an artifact's safetensors form on `device`, in `dtype` or as it is stored.

    Raises BackendError if it does not load.
    """
    assert form.whole is not None
    try:
        model = load_checkpoint((directory / form.whole).parent, dtype).to(device)
    except ArtifactError as error:
        raise BackendError(f"{form.whole} does not load in torch: {error}") from error
    return Opened(_parts(model), TorchArrays(device, next(model.parameters()).dtype))


def _parts(model: LayeredModel) -> Parts:
    """Those of a stack; of a network that is none, the whole."""
    if isinstance(model, Whole):
        return Parts(unchanged, (), module_part(model))
    layers = tuple(module_part(layer) for layer in model.layers)
    return Parts(module_part(model.embed), layers, module_part(model.head))
