"""What a model that takes arrays gives, as far as two runs on zeros can tell. Knows no file and no runtime."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from models.artifact import TensorSpec
from models.datatype import DTYPES, Datatype
from models.errors import ArtifactError

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[Sequence[Array]], Sequence[Array]]

# A model is run twice; where an output's size follows, the axis is dynamic. Rows and other axes (lengths, image sides)
# get sizes of their own, the latter large enough for a few strided layers.
ROWS, OTHER = (2, 3), (32, 48)


def spec(what: str, name: str, datatype: str | None, shape: Sequence[int] | None) -> TensorSpec:
    """A tensor in the manifest's terms. Raises ArtifactError if it is of another type or has no axis for rows."""
    if datatype not in get_args(Datatype):
        raise ArtifactError(f"{what} is of type {datatype}; served are tensors of {', '.join(get_args(Datatype))}")
    if not shape:
        raise ArtifactError(f"{what} is a scalar; the first axis of every input and output must be the batch")
    return TensorSpec.model_validate({"name": name, "datatype": datatype, "shape": tuple(shape)})


def probe(
    call: Call, inputs: Sequence[TensorSpec], names: Sequence[str] | None = None, remedy: str = "correct the inputs"
) -> tuple[TensorSpec, ...]:
    """The outputs of a model, from two runs on zeros of different sizes.

    `names` are the outputs' own; without them they are `output`, or `output_0` and so on. Raises ArtifactError if the
    model does not run, with the `remedy`, or if its outputs do not have one row for each row of the inputs.
    """
    first, second = (_run(call, inputs, rows, other, remedy) for rows, other in zip(ROWS, OTHER, strict=True))
    if names is None:
        names = [f"output_{i}" for i in range(len(first))] if len(first) > 1 else ["output"]
    rows = -1 if any(entry.shape[0] == -1 for entry in inputs) else inputs[0].shape[0]
    return tuple(_compared(name, rows, a, b) for name, a, b in zip(names, first, second, strict=True))


def _run(call: Call, inputs: Sequence[TensorSpec], rows: int, other: int, remedy: str) -> Sequence[Array]:
    shapes = [tuple((other if i else rows) if dim == -1 else dim for i, dim in enumerate(e.shape)) for e in inputs]
    zeros = [np.zeros(shape, DTYPES[entry.datatype]) for entry, shape in zip(inputs, shapes, strict=True)]
    try:
        return call(zeros)
    except Exception as error:  # runtimes share no error class
        tried = ", ".join(f"{entry.name} {list(shape)}" for entry, shape in zip(inputs, shapes, strict=True))
        raise ArtifactError(f"the model does not run on zeros of {tried}: {error}; {remedy}") from error


def _compared(name: str, rows: int, first: Array, second: Array) -> TensorSpec:
    datatypes: dict[str, str] = {dtype: datatype for datatype, dtype in DTYPES.items()}
    if first.ndim != second.ndim:
        raise ArtifactError(f"output {name!r} has {first.ndim} axes for one batch and {second.ndim} for another")
    shape = [a if a == b else -1 for a, b in zip(first.shape, second.shape, strict=True)]
    found = spec(f"output {name!r}", name, datatypes.get(str(first.dtype), str(first.dtype)), shape)
    if shape[0] != rows:
        raise ArtifactError(
            f"output {name!r} has shapes {list(first.shape)} and {list(second.shape)} "
            f"for {ROWS[0]} and {ROWS[1]} rows; the first axis of every output must be the batch"
        )
    return found
