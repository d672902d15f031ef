"""One rank's slices of a checkpoint, each read from its file alone."""

from pathlib import Path

import torch

from models.errors import ArtifactError
from models.lm.weights import Checkpoint, configured, open_checkpoint
from models.parallel.group import Group
from models.parallel.model import ShardedModel
from models.parallel.split import Place, bias_share, cut_of
from models.parallel.stages import Stages
from models.shards import Cut, put

_WORDS = "embed.embed_tokens.weight"


def load_shard(
    directory: Path,
    group: Group,
    dtype: torch.dtype | None = torch.float32,
    stages: Stages | None = None,
    stage: int = 0,
) -> ShardedModel:
    """This rank's part of a checkpoint directory, ready for inference, in `dtype`, or None for the stored one.

    Only what the rank computes with is read, on a stage of a pipeline only of the stage's part; whole runs of rows stay
    mapped from their file. Raises ArtifactError as `models.lm.weights.load` does, and BackendError for a model that
    cannot be dealt out to so many ranks.
    """
    found = open_checkpoint(directory, _words(directory, group) if stage == 0 else Cut(0, ()))
    part = stages.part(stage, found.config.is_tied) if stages else None
    with torch.device("meta"):
        model = ShardedModel(found.config, group, part)
    for name in found.by_file():
        if model.part.has(name):
            _load(model, name, found, Place(group.rank, group.size), dtype)
        else:
            _leave_out(model, name, found, dtype)
    if found.config.is_tied and model.part.has_head:
        model.head.lm_head.weight = model.embed.embed_tokens.weight
    return model.eval()


def _load(model: ShardedModel, name: str, found: Checkpoint, place: Place, dtype: torch.dtype | None) -> None:
    source, shape = found.sources[name], found.shapes[name]
    if (stored := source.shape(found.shards)) != shape:
        raise ArtifactError(
            f"tensor {name!r} has shape {list(stored)} and config.json asks for {list(shape)}; "
            "save the checkpoint again"
        )
    cut = cut_of(name, shape, found.config, place) if place.size > 1 else None
    if cut is None:
        share = bias_share(name, found.config, place)
        tensor = source.read(found.shards)
        put(model, name, tensor if share == 1.0 else tensor * share, dtype)
    elif cut.runs:
        put(model, name, source.read(found.shards, cut).contiguous(), dtype)
    else:
        _register_nothing(model, name)


def _leave_out(model: ShardedModel, name: str, found: Checkpoint, dtype: torch.dtype | None) -> None:
    """Load a parameter of another stage as none; of the embedding no words, for their precision."""
    if name == _WORDS:
        put(model, name, found.sources[name].read(found.shards, Cut(0, ())).contiguous(), dtype)
    elif not name.startswith("layers"):
        _register_nothing(model, name)


def _register_nothing(model: ShardedModel, name: str) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner).register_parameter(attribute, None)


def _words(directory: Path, group: Group) -> Cut | None:
    """The rows of the vocabulary that this rank reads."""
    if group.size == 1:
        return None
    config, _ = configured(directory)
    return Cut(0, (Place(group.rank, group.size).words(config.vocab_size),))
