"""A checkpoint directory made from another: other tensors, another config.json, everything else as it was."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from models.errors import ArtifactError
from models.lm.wrapping import OURS, wrapped
from models.shards import INDEX, WEIGHTS, Shards


def rewrite(
    checkpoint: Path, target: Path, tensors: Mapping[str, Tensor], raw: Mapping[str, Any], done: str, **ours: object
) -> None:
    """Write `target`, whole or not at all; `done` is added to what its provenance tells.

    Raises ArtifactError if the directory is there already or cannot be written.
    """
    if target.exists():
        raise ArtifactError(f"{target} exists; name another --out")
    told = raw.get(OURS, {})
    config = {**raw, OURS: {**told, **ours, "done": [*told.get("done", ()), done]}}
    hidden = target.parent / f".{target.name}-{uuid4().hex}"
    left = (INDEX, "config.json", "README.md", *Shards(checkpoint).files)  # the card is about other weights
    try:
        shutil.copytree(checkpoint, hidden, ignore=shutil.ignore_patterns(*left))
        (hidden / "config.json").write_text(json.dumps(wrapped(config), indent=2) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, hidden / WEIGHTS, {"format": "pt"})
        hidden.rename(target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; make room or name another --out") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its name there, mapped from its file."""
    shards = Shards(checkpoint)
    return {name: shards.read(name) for name in sorted(shards.names, key=shards.file_of)}
