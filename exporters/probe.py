"""What an unknown graph takes, from what its file says and what the caller says. Knows no file format."""

from collections.abc import Mapping, Sequence

from models.artifact import TensorSpec
from models.errors import InputError
from models.probe import spec

# What to do about a graph that does not run on zeros.
REMEDY = "correct it with --input"


def completed(
    name: str, datatype: str | None, shape: tuple[int, ...] | None, given: Mapping[str, TensorSpec]
) -> TensorSpec:
    """One input from what its file says (None: nothing) and what the caller says. Raises InputError, ArtifactError."""
    said = given.get(name)
    if said is None and (datatype is None or shape is None):
        raise InputError(
            f"the file does not say the datatype and shape of input {name!r}; add --input {name}:FP32:-1,64"
        )
    if said is None:
        return spec(f"input {name!r}", name, datatype, shape)
    fits = shape is None or (
        len(shape) == len(said.shape)
        and all(dim in (-1, wanted) for dim, wanted in zip(shape, said.shape, strict=True))
    )
    if not fits or datatype not in (None, said.datatype):
        raise InputError(
            f"--input says {name}:{said.datatype}:{list(said.shape)}, the file {datatype} {list(shape or ())}"
        )
    return said


def refuse_strangers(given: Mapping[str, TensorSpec], names: Sequence[str]) -> None:
    """Raise InputError if something was said of an input that the graph does not have."""
    strangers = sorted(given.keys() - set(names))
    if strangers:
        raise InputError(f"--input names {strangers}, which the graph does not have; its inputs are {list(names)}")
