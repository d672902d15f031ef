"""The checkpoint itself as an exported form: what the eager backend builds its model from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from exporters.parts import Parts
from models.errors import ArtifactError
from models.shards import INDEX, WEIGHTS, Shards


def write(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Copy configuration and weights into `folder`, however many files they are, yielding each file's name."""
    for name in ("config.json", *entry(checkpoint)):
        shutil.copyfile(checkpoint / name, folder / name)
        yield name


def entry(checkpoint: Path) -> tuple[str, ...]:
    """The files of the weights, the one to begin with first: the weights, or the index of their shards."""
    files = Shards(checkpoint).files
    return files if files == (WEIGHTS,) else (INDEX, *files)


def check(parts: Parts) -> None:
    """Run the whole model once on example inputs. Raises ArtifactError if what comes out is not finite."""
    found = parts.whole(*parts.whole.examples)[0]
    if not torch.isfinite(found).all():
        raise ArtifactError("the model answers its example inputs with NaN or infinity; its weights are damaged")
