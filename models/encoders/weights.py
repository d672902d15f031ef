"""The tensors of a Hugging Face encoder checkpoint as the parameters of ours, one at a time."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.encoders import sentence
from models.encoders.architectures import ARCHITECTURES, Architecture, read_config
from models.encoders.config import EncoderConfig
from models.encoders.model import EncoderModel
from models.errors import ArtifactError
from models.shards import Shards, load_into, read_json, refuse_differences

_TIED, _BIAS = "head.project.out.weight", "head.project.out.bias"
# Buffers that old checkpoints hold, and heads that were trained beside the one that is asked for.
_IGNORED = ("position_ids", "token_type_ids", "rotary_emb.inv_freq")
_UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias")
# Names of the first BERT.
_OLD = {".weight": ".gamma", ".bias": ".beta"}


def load(directory: Path, dtype: torch.dtype | None = torch.float32) -> EncoderModel:
    """The model of a checkpoint directory, ready for inference, in `dtype`, or None for the one it is stored in.

    With a modules.json it ends as sentence-transformers ends. Raises ArtifactError naming every tensor that is missing,
    unexpected or of another shape, and whatever the directory says that is not computed.
    """
    raw = read_json(directory / "config.json")
    config = read_config(raw, sentence.is_sentence(directory))
    if config.head.task == "embed":
        config = sentence.with_modules(config, directory)
    elif config.head.num_outputs == 1 and (scores := sentence.cross_scores(raw, directory)):
        config = replace(config, head=replace(config.head, scores=scores))
    with torch.device("meta"):
        model = EncoderModel(config)
    shards, architecture = Shards(directory), ARCHITECTURES[raw["model_type"]]
    wanted = {name: _stored(name, architecture, config, shards.names) for name in _parameters(model)}
    _check_names(directory, set(wanted.values()), architecture, config, shards)
    readers: dict[str, Callable[[], Tensor]] = {
        name: partial(_read, shards, stored, name, architecture) for name, stored in wanted.items()
    }
    load_into(model, readers | sentence.denses(config, directory), dtype)
    if config.head.is_tied:
        model.tie()
    return model.eval()


def _parameters(model: EncoderModel) -> list[str]:
    """Those that the checkpoint itself holds."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    skipped = ("head.denses.", _TIED) if model.config.head.is_tied else ("head.denses.",)
    return [name for name in names if not name.startswith(skipped)]


def _stored(name: str, architecture: Architecture, config: EncoderConfig, there: frozenset[str]) -> str:
    """The checkpoint's name of one of our parameters, as it stands in the file."""
    if name == _BIAS and not config.head.is_tied and (own := _decoder(architecture)[1]) in there:
        return own
    if name.startswith("head.project."):
        for ours, theirs in architecture.heads[config.head.task].items():
            if name.startswith(ours):
                return _aged(name.replace(ours, theirs, 1), there)
    stored = name
    for ours, (whole, _) in architecture.fused.items():
        stored = stored.replace(ours, whole, 1)
    for ours, theirs in architecture.names.items():
        if ours in stored:
            stored = stored.replace(ours, theirs, 1)
    prefixed = _aged(architecture.prefix + stored, there)
    bare = _aged(stored, there)
    return bare if prefixed not in there and bare in there else prefixed


def _aged(name: str, there: frozenset[str]) -> str:
    """A name in the form of the first BERT where only that is in the file."""
    for new, old in _OLD.items():
        older = name.removesuffix(new) + old
        if name not in there and name.endswith(new) and older in there:
            return older
    return name


def _read(shards: Shards, stored: str, name: str, architecture: Architecture) -> Tensor:
    tensor = shards.read(stored)
    for ours, (whole, place) in architecture.fused.items():
        if ours in name:
            count = sum(other == whole for other, _ in architecture.fused.values())
            if len(tensor) % count:
                raise ArtifactError(f"tensor {stored!r} has {len(tensor)} rows, which are not {count} projections")
            return tensor.chunk(count)[place]
    return tensor


def _check_names(
    directory: Path, wanted: set[str], architecture: Architecture, config: EncoderConfig, shards: Shards
) -> None:
    """Nothing may be missing, and nothing beyond what is known to have no part in the outputs."""
    extra = {name for name in shards.names - wanted if not name.endswith(_IGNORED + _UNUSED)}
    if sentence.is_sentence(directory):  # weights saved with a head serve without it
        heads = [theirs for names in architecture.heads.values() for theirs in names.values()]
        extra = {name for name in extra if not name.startswith((*heads, "cls.", "lm_head."))}
    if config.head.task == "fill-mask":
        extra -= _shared(directory, architecture, config, shards)
    refuse_differences(directory, wanted - shards.names, extra)


def _shared(directory: Path, architecture: Architecture, config: EncoderConfig, shards: Shards) -> set[str]:
    """What a masked language model stores though another tensor is used: copies of it, or the bias of no decoder.

    Raises ArtifactError for a copy that is none.
    """
    weight, own_bias, bias = _decoder(architecture)
    if not config.head.is_tied:
        return {bias}
    word = architecture.names["embed.word."] + "weight"
    copies = {weight: word if word in shards.names else architecture.prefix + word, own_bias: bias}
    for copy in shards.names & copies.keys():
        if copy != copies[copy] and not torch.equal(shards.read(copy), shards.read(copies[copy])):
            raise ArtifactError(
                f"{directory} has a {copy!r} of its own, and config.json ties it; say tie_word_embeddings false there"
            )
    return set(copies)


def _decoder(architecture: Architecture) -> tuple[str, str, str]:
    """Names of the last projection's weight, of its own bias, and of the bias beside it that it shares if tied."""
    names = architecture.heads["fill-mask"]
    both = names.get("head.project.out.")
    if both is not None:
        return f"{both}weight", f"{both}bias", f"{both}bias"
    return names[_TIED], names[_TIED].removesuffix("weight") + "bias", names[_BIAS]
