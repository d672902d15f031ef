"""The safetensors files of a checkpoint directory, memory-mapped. Safetensors only: a checkpoint never runs code."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import ArtifactError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Tensors listed in a message.
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Cut:
    """Runs from start to stop of one dimension of a tensor, one after the other: the part of it that is wanted."""

    dim: int
    runs: tuple[tuple[int, int], ...]


class Shards:
    """Names, shapes and tensors of one checkpoint, whatever number of files they are spread over.

    One file is open at a time: who reads file by file (`file_of`) keeps nothing mapped that was converted. Raises
    ArtifactError for files that are missing, truncated or pickles, and for an index that lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.files = _files(directory)
        self._opened: tuple[str, Any] = "", None
        self._file_of = {name: file for file in self.files for name in list(self._open(file).keys())}
        self._check_index()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._file_of)

    def file_of(self, name: str) -> str:
        """The file that holds a tensor."""
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header alone."""
        return tuple(self._open(self._file_of[name]).get_slice(name).get_shape())

    def read(self, name: str, cut: Cut | None = None) -> Tensor:
        """A tensor, or the part of it that is wanted: mapped from its file, no memory of its own until it is changed.

        Several runs are joined, which copies them. Raises ArtifactError for a run that ends behind the tensor.
        """
        file = self._open(self._file_of[name])
        if cut is None:
            tensor: Tensor = file.get_tensor(name)
            return tensor
        stored = file.get_slice(name)
        size = stored.get_shape()[cut.dim]
        if any(stop > size for _, stop in cut.runs):
            raise ArtifactError(
                f"tensor {name!r} has {size} rows in dimension {cut.dim} and {cut.runs} are asked for; "
                "save the checkpoint again"
            )
        runs = cut.runs or ((0, 0),)
        parts: list[Tensor] = [stored[(slice(None),) * cut.dim + (slice(*run),)] for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, cut.dim)

    def _open(self, file: str) -> Any:
        if self._opened[0] != file:
            path = self._directory / file
            try:
                self._opened = file, safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ArtifactError(
                    f"{path} cannot be read as safetensors: {error}; copy the checkpoint again"
                ) from error
        return self._opened[1]

    def _check_index(self) -> None:
        listed = _weight_map(self._directory / INDEX) if (self._directory / INDEX).exists() else {}
        wrong = sorted(name for name, file in listed.items() if self._file_of.get(name) != file)
        if wrong:
            raise ArtifactError(
                f"{self._directory / INDEX} lists tensors that are not in the file it names: {wrong[:_LISTED]}; "
                "copy the checkpoint again"
            )


def load_into(
    module: torch.nn.Module,
    tensors: Mapping[str, Callable[[], Tensor]],
    dtype: torch.dtype | None = None,
) -> None:
    """Give a module built on the meta device its parameters, one after the other, converted to `dtype` if given.

    A tensor that needs no conversion stays mapped. Raises ArtifactError for a tensor of another shape.
    """
    for name, read in tensors.items():
        tensor, wanted = read(), module.get_parameter(name)
        if tensor.shape != wanted.shape:
            raise ArtifactError(
                f"tensor {name!r} has shape {list(tensor.shape)} and config.json asks for {list(wanted.shape)}; "
                "save the checkpoint again"
            )
        put(module, name, tensor, dtype)


def put(module: torch.nn.Module, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
    """Give a module one parameter of whatever shape, converted to `dtype` if given."""
    owner, _, attribute = name.rpartition(".")
    parameter = torch.nn.Parameter(tensor.to(dtype or tensor.dtype), requires_grad=False)
    setattr(module.get_submodule(owner), attribute, parameter)


def read_json(path: Path, kind: type = dict) -> Any:
    """The object (or list) of a JSON file. Raises ArtifactError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; copy the checkpoint again") from error
    if not isinstance(found, kind):
        raise ArtifactError(f"{path} holds no {kind.__name__}; copy the checkpoint again")
    return found


def refuse_differences(where: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise ArtifactError naming tensors that a checkpoint lacks, or has beyond what its config.json says."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected:
        raise ArtifactError(
            f"{where} does not fit config.json: missing {missing[:_LISTED]}, unexpected {unexpected[:_LISTED]}; "
            "save the checkpoint again"
        )


def _files(directory: Path) -> tuple[str, ...]:
    if (directory / WEIGHTS).is_file():
        return (WEIGHTS,)
    if (directory / INDEX).is_file():
        return _indexed(directory)
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix in _PICKLED)
    if pickled:
        raise ArtifactError(
            f"{directory} has its weights in {pickled[:_LISTED]}, pickles that run code when they are read; "
            "save them as safetensors where they come from (save_pretrained does)"
        )
    raise ArtifactError(f"{directory} has neither {WEIGHTS} nor {INDEX}; copy the checkpoint again")


def _indexed(directory: Path) -> tuple[str, ...]:
    files = sorted(set(_weight_map(directory / INDEX).values()))
    strange = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
    if strange:
        raise ArtifactError(f"{directory / INDEX} names {strange[:_LISTED]}; only safetensors files beside it are read")
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise ArtifactError(f"{directory} lacks the shards {missing[:_LISTED]}; copy the checkpoint again")
    return tuple(files)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text())["weight_map"]
        listed = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{index} is no index of shards: {error!r}; copy the checkpoint again") from error
    if not listed:
        raise ArtifactError(f"{index} lists no tensors; copy the checkpoint again")
    return listed
