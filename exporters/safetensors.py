"""The checkpoint itself as an exported form: what the eager backend builds its model from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from exporters.parts import Runs
from exporters.split import split
from models.checkpoint import load_checkpoint
from models.encoders import sentence

WEIGHTS = "model.safetensors"


def write(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Copy configuration and weights into `folder`, yielding each file's name."""
    for name in ("config.json", WEIGHTS, *map(str, sentence.files(checkpoint))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, folder / name)
        yield name


def load(folder: Path) -> Runs:
    """Build the model again, as a server does. Raises ArtifactError."""
    parts = split(load_checkpoint(folder))
    return Runs(parts.embed, parts.layers, parts.head, None)
