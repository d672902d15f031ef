"""Parts as graphs of torch.export: they need no source of the model, and are the slowest of all to call."""

from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass

from models.artifact import Form
from models.errors import BackendError
from service.backends.parts import Part, Parts
from service.backends.torch_arrays import Opened, TorchArrays, module_part


def open_pt2(directory: Path, form: Form, device: torch.device) -> Opened:
    """Load the graphs of one model. Raises BackendError if a file does not load."""

    def part(name: str) -> Part:
        return module_part(_load(directory / name, device))

    return Opened(Parts.of(form, part), TorchArrays(device))


def _load(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        program = torch.export.load(path)
        moved = program if device.type == "cpu" else move_to_device_pass(program, device)
        return moved.module(check_guards=False)  # other sizes were verified at export
    except Exception as error:  # the loader's errors share no class
        raise BackendError(f"{path.name} does not load in torch.export: {error}") from error
