"""What a library calls the tensors of a network, and which of its networks are read. Knows no weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from models.errors import ArtifactError
from models.shards import Shards

Raw: TypeAlias = Mapping[str, Any]
# Of our parameters: a pattern and what stands there instead, or a function that says it.
Renaming: TypeAlias = tuple[tuple[str, "str | Callable[[re.Match[str]], str]"], ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of network of one library.

    build: config.json and the tensors' shapes to a network. names: every pattern is tried, in order. fused: of our
    parameters, what is cut out of a larger tensor, as pattern, name of the larger one, place and number of equal
    pieces. ignored: tensors that inference does without.
    """

    build: Callable[[Raw, Shards], nn.Module]
    names: Renaming
    fused: tuple[tuple[str, str, int, int], ...] = ()
    ignored: tuple[str, ...] = ()

    def stored(self, name: str) -> str:
        """The library's name of one of our parameters."""
        for pattern, theirs in self.names:
            name = re.sub(pattern, theirs, name)
        return name

    def piece(self, name: str) -> tuple[str, int, int]:
        """The library's tensor that one of our parameters lies in, its place and how many pieces there are."""
        for pattern, whole, place, count in self.fused:
            if re.search(pattern, name):
                return self.stored(re.sub(pattern, whole, name)), place, count
        return self.stored(name), 0, 1


def numbered(offset: int, form: str) -> Callable[[re.Match[str]], str]:
    """A replacement in which the match's first number is counted from `offset`, the others are as they are."""
    return lambda match: form.format(int(match[1]) + offset, *match.groups()[1:])


def check_sizes(raw: Raw, names: tuple[str, ...]) -> None:
    """Raise ArtifactError unless config.json gives each of these a whole number from 1 on."""
    for name in names:
        if type(raw.get(name)) is not int or raw[name] < 1:
            raise ArtifactError(f"config.json says {name} = {raw.get(name)!r}; it must be a whole number from 1 on")


def pair(raw: Raw, name: str, otherwise: int | None = None) -> tuple[int, int]:
    """A size that config.json gives as one number or as height and width. Raises ArtifactError."""
    value = raw.get(name, otherwise)
    sizes = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise ArtifactError(f"config.json says {name} = {value!r}; it must be a whole number from 1 on, or two")
    return sizes


def shape_of(shards: Shards, name: str, num_axes: int) -> tuple[int, ...]:
    """Shape of a tensor that sizes are read from. Raises ArtifactError if it is missing or has other axes."""
    if name not in shards.names:
        raise ArtifactError(f"the checkpoint has no tensor {name!r}; save it again, with its classifier")
    shape = shards.shape(name)
    if len(shape) != num_axes:
        raise ArtifactError(f"tensor {name!r} has shape {list(shape)}, not {num_axes} axes; save the checkpoint again")
    return shape


def count_of(shards: Shards, pattern: str) -> int:
    """One more than the largest number that stands in `pattern`'s group in the tensors' names, 0 if none does."""
    found = (re.match(pattern, name) for name in shards.names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
