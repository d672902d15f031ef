"""A foreign TorchScript file: the names of its inputs, and its outputs by running it.

The format keeps no shapes and no datatypes, not even of a trace: the caller has to say them.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.probe import REMEDY, completed, refuse_strangers
from exporters.torchscript import quiet
from models.artifact import TensorSpec
from models.errors import ArtifactError
from models.probe import Array, probe

NAME = "whole.pt"


def signature(file: Path, given: Mapping[str, TensorSpec]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs. Raises ArtifactError if the file does not load or run, InputError if an input is unsaid."""
    module = _load(file)
    names = _input_names(file, module)
    refuse_strangers(given, names)
    inputs = tuple(completed(name, None, None, given) for name in names)

    def call(arrays: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            return _arrays(module(*(torch.from_numpy(array) for array in arrays)))

    return inputs, probe(call, inputs, remedy=REMEDY)


def copy(file: Path, folder: Path) -> str:
    """Copy the file; returns its name in `folder`."""
    shutil.copyfile(file, folder / NAME)
    return NAME


def _load(file: Path) -> Any:
    with quiet():
        try:
            return torch.jit.load(file, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:  # the loader raises RuntimeError, ValueError and more
            raise ArtifactError(
                f"{file} is no TorchScript file: {str(error).splitlines()[0]}; save it with torch.jit.save "
                "(pickled checkpoints run code when they are read, and are not)"
            ) from error


def _input_names(file: Path, module: Any) -> list[str]:
    """Arguments that must be given: tensors, without a default."""
    arguments = [argument for argument in module.forward.schema.arguments[1:] if not argument.has_default_value()]
    others = {argument.name: str(argument.type) for argument in arguments if str(argument.type) != "Tensor"}
    if others or not arguments:
        raise ArtifactError(f"{file} takes {others or 'nothing'}; only graphs that take tensors can be served")
    return [argument.name for argument in arguments]


def _arrays(outputs: Any) -> list[Array]:
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(tensors, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(f"it returns {type(outputs).__name__}, not a tensor or a tuple of tensors")
    return [tensor.numpy() for tensor in tensors]
