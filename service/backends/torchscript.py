"""Parts as TorchScript modules. Deprecated upstream, still what many people have on disk."""

import warnings
from pathlib import Path

import torch

from models.artifact import Form
from models.errors import BackendError
from service.backends.parts import Part, Parts
from service.backends.torch_arrays import Opened, TorchArrays, module_part


def open_torchscript(directory: Path, form: Form, device: torch.device) -> Opened:
    """Load the modules of one model, in the precision they were exported in. Raises BackendError if one does not."""

    def part(name: str) -> Part:
        return module_part(_load(directory / name, device))

    return Opened(Parts.of(form, part), TorchArrays(device))


def _load(path: Path, device: torch.device) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        try:
            module: torch.nn.Module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except Exception as error:  # the loader raises RuntimeError, ValueError and more
            raise BackendError(f"{path.name} does not load as TorchScript: {error}") from error
    return module.eval()
