"""The tensors of a Hugging Face decoder checkpoint as the parameters of ours, one at a time, and Llama's back."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.errors import ArtifactError
from models.lm.architectures import ARCHITECTURES, Architecture, read_config
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.sources import Source, source, stored_name
from models.lm.wrapping import unwrapped
from models.shards import Cut, Shards, load_into, refuse_differences

_TIED = "head.lm_head.weight"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that was looked through: what its config.json says, and where it has each parameter of ours."""

    config: LMConfig
    shards: Shards
    sources: dict[str, Source]
    shapes: dict[str, tuple[int, ...]]

    def by_file(self) -> list[str]:
        """The parameters, file by file: one is open at a time."""
        return sorted(self.sources, key=lambda name: self.shards.file_of(self.sources[name].names[0]))


def load(directory: Path, dtype: torch.dtype | None = torch.float32) -> LanguageModel:
    """The model of a checkpoint directory, ready for inference, in `dtype`, or None for the one it is stored in.

    What needs no conversion stays mapped from its file. Raises ArtifactError naming every tensor that is missing,
    unexpected or of another shape, and whatever config.json says that is not computed.
    """
    found = open_checkpoint(directory)
    with torch.device("meta"):
        model = LanguageModel(found.config)
    load_into(model, {name: partial(found.sources[name].read, found.shards) for name in found.by_file()}, dtype)
    if found.config.is_tied:
        model.tie()
    return model.eval()


def open_checkpoint(directory: Path, vocabulary: Cut | None = None) -> Checkpoint:
    """Find every parameter in the headers of a checkpoint's files; of a head stored twice read the rows `vocabulary`.

    Raises ArtifactError naming every tensor that is missing or unexpected, and whatever config.json says that is not
    computed.
    """
    config, architecture = configured(directory)
    shards = Shards(directory)
    if config.num_hidden_layers > len(shards.names):
        raise ArtifactError(
            f"config.json says num_hidden_layers = {config.num_hidden_layers} and {directory} holds "
            f"{len(shards.names)} tensors; save the checkpoint again"
        )
    with torch.device("meta"):
        model = LanguageModel(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    if config.is_tied:
        del shapes[_TIED]
    sources = {name: source(name, architecture, config, shards.names) for name in shapes}
    _check_names(directory, sources, architecture, config, shards, vocabulary)
    return Checkpoint(config, shards, sources, shapes)


def configured(directory: Path) -> tuple[LMConfig, Architecture]:
    """What the config.json of a checkpoint says. Raises ArtifactError for whatever is not computed."""
    raw = unwrapped(json.loads((directory / "config.json").read_text()))
    return read_config(raw, raw["model_type"]), ARCHITECTURES[raw["model_type"]]


def save(model: LanguageModel, directory: Path) -> None:
    """Write `config.json` and `model.safetensors` in Llama names."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.write(directory)
    tensors = {
        stored_name(name, ARCHITECTURES["llama"]): tensor.contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _check_names(
    directory: Path,
    wanted: dict[str, Source],
    architecture: Architecture,
    config: LMConfig,
    shards: Shards,
    vocabulary: Cut | None,
) -> None:
    used = {name for found in wanted.values() for name in found.names}
    extra = {name for name in shards.names - used if not name.endswith(architecture.ignored)}
    head = stored_name(_TIED, architecture)
    if config.is_tied and head in extra:  # stored twice by some; it must be the same one
        extra.discard(head)
        embedded = wanted["embed.embed_tokens.weight"].read(shards, vocabulary)
        if not torch.equal(shards.read(head, vocabulary), embedded):
            raise ArtifactError(
                f"{directory} has a {head!r} of its own, and config.json says tie_word_embeddings; say false there"
            )
    refuse_differences(directory, used - shards.names, extra)
