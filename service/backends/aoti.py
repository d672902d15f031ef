"""Parts as machine code that AOTInductor made for a CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor import aoti_load_package

from models.artifact import Form
from models.errors import BackendError
from service.backends.parts import Part, Parts
from service.backends.torch_arrays import Opened, TorchArrays


def open_aoti(directory: Path, form: Form, device: torch.device) -> Opened:
    """Load the files of one model. Raises BackendError if one does not load, or for a device other than the CPU."""
    if device.type != "cpu":
        raise BackendError(
            f"device {device.type} was asked for and the files are machine code of a CPU; use device cpu"
        )

    def part(name: str) -> Part:
        return _part(directory / name)

    return Opened(Parts.of(form, part), TorchArrays(device))


def _part(path: Path) -> Part:
    try:
        module = aoti_load_package(str(path))
    except Exception as error:  # the loader's errors share no class
        raise BackendError(f"{path.name} does not load as compiled code: {error}") from error

    def call(*arrays: Any) -> Sequence[Any]:
        with torch.no_grad():  # outputs of inference_mode could not be merged in place
            outputs = module(*(array.contiguous() for array in arrays))  # other strides are not looked at
        return outputs if isinstance(outputs, tuple | list) else (outputs,)

    return call
