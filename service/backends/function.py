"""A Python function as a model: whole batches of host arrays in, whole batches out. Knows no runtime.

The function is somebody's own: whatever it raises or returns ends as an answer to whoever asked, never as the end of
the thread that called it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from models.artifact import TensorSpec
from models.datatype import DTYPES
from models.errors import FathomError, ModelError
from service.backends.parts import Part, Parts, unchanged
from service.backends.protocol import Array

# Arrays in the order of the inputs; an array, several, or several by name.
Function: TypeAlias = Callable[..., Any]


def open_function(name: str, function: Function, outputs: Sequence[TensorSpec]) -> Parts:
    """The parts of a model that is served whole. What it answers is checked against `outputs`."""
    names = [spec.name for spec in outputs]
    call = guarded(name, lambda *arrays: listed(function(*arrays), names))

    def checked(*arrays: Any) -> Sequence[Array]:
        given = call(*arrays)
        _check(name, given, outputs, len(arrays[0]))
        return given

    return Parts(unchanged, (), checked)


def guarded(name: str, part: Part) -> Part:
    """A part of a model of that name, its faults as ModelErrors; errors of ours pass, so that it can refuse inputs."""

    def call(*arrays: Any) -> Sequence[Any]:
        try:
            return part(*arrays)
        except FathomError:
            raise
        except BaseException as error:  # even SystemExit would end the device thread, and with it the model
            raise ModelError(f"model {name!r} raised {type(error).__name__}: {error}") from error

    return call


def listed(given: Any, names: Sequence[str] | None = None) -> list[Array]:
    """What a function returned as arrays, in the order of `names` where it told them by name. Raises ModelError."""
    if isinstance(given, Mapping):
        if names is not None and given.keys() != set(names):
            raise ModelError(f"outputs {sorted(map(str, given))} were returned and {sorted(names)} are declared")
        given = [given[one] for one in names or given]
    arrays = list(given) if isinstance(given, list | tuple) else [given]
    for array in arrays:
        if not isinstance(array, np.ndarray):
            raise ModelError(
                f"an output is of type {type(array).__name__}; return a numpy array, a tuple of them, or a dict by name"
            )
    return arrays


def _check(name: str, given: Sequence[Array], outputs: Sequence[TensorSpec], num_rows: int) -> None:
    if len(given) != len(outputs):
        raise ModelError(f"model {name!r} returned {len(given)} outputs; {[one.name for one in outputs]} are declared")
    for array, spec in zip(given, outputs, strict=True):
        if array.shape[:1] != (num_rows,):
            raise ModelError(
                f"model {name!r}: output {spec.name!r} has shape {list(array.shape)} for {num_rows} rows; "
                "return one row for each row of the inputs"
            )
        if array.dtype != DTYPES[spec.datatype] or not _fits(array.shape, spec.shape):
            raise ModelError(
                f"model {name!r}: output {spec.name!r} is {array.dtype} {list(array.shape)}; declared is "
                f"{spec.datatype} {list(spec.shape)}; return that, or declare what it returns"
            )


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        wanted in (-1, size) for size, wanted in zip(shape, declared, strict=True)
    )
