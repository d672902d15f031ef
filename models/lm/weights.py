"""The tensors of a Hugging Face decoder checkpoint as the parameters of ours, one at a time, and Llama's back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.errors import ArtifactError
from models.lm.architectures import ARCHITECTURES, Architecture, read_config
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.wrapping import unwrapped
from models.shards import Shards, load_into, refuse_differences

_TIED = "head.lm_head.weight"
_EXPERTS = (".mlp.gate_up_proj", ".mlp.down_proj")
# The two matrices of a projection of low rank: stored one by one, as they are, whatever the architecture fuses.
_PIECES = (".first.weight", ".second.weight", ".second.bias")
_PLACES = {".q_proj.": 0, ".k_proj.": 1, ".v_proj.": 2, ".gate_proj.": 0, ".up_proj.": 1}


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of a checkpoint that one parameter is made of, and how."""

    names: tuple[str, ...]
    make: Callable[..., Tensor]


def load(directory: Path, dtype: torch.dtype | None = torch.float32) -> LanguageModel:
    """The model of a checkpoint directory, ready for inference, in `dtype`, or None for the one it is stored in.

    What needs no conversion stays mapped from its file. Raises ArtifactError naming every tensor that is missing,
    unexpected or of another shape, and whatever config.json says that is not computed.
    """
    raw = unwrapped(json.loads((directory / "config.json").read_text()))
    config, architecture = read_config(raw, raw["model_type"]), ARCHITECTURES[raw["model_type"]]
    shards = Shards(directory)
    if config.num_hidden_layers > len(shards.names):
        raise ArtifactError(
            f"config.json says num_hidden_layers = {config.num_hidden_layers} and {directory} holds "
            f"{len(shards.names)} tensors; save the checkpoint again"
        )
    with torch.device("meta"):
        model = LanguageModel(config)
    wanted = {name: source(name, architecture, config, shards.names) for name in _parameters(model)}
    _check_names(directory, wanted, architecture, config, shards)
    by_file = sorted(wanted.items(), key=lambda one: shards.file_of(one[1].names[0]))
    load_into(model, {name: partial(_made, shards, found) for name, found in by_file}, dtype)
    if config.is_tied:
        model.tie()
    return model.eval()


def save(model: LanguageModel, directory: Path) -> None:
    """Write `config.json` and `model.safetensors` in Llama names."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.write(directory)
    tensors = {
        stored_name(name, ARCHITECTURES["llama"]): tensor.contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def source(name: str, architecture: Architecture, config: LMConfig, there: frozenset[str]) -> Source:
    """What one of our parameters is made of."""
    if name.endswith(_PIECES):
        return Source((_present(stored_name(name, architecture), architecture, there),), _as_stored)
    if name.endswith(_EXPERTS) and config.experts:
        return _experts(name, architecture, config.experts.count, there)
    for part, (whole, cut) in architecture.fused.items():
        if part in name:
            stored = stored_name(name.replace(part, whole), architecture)
            make = partial(_cut, place=_PLACES[part[part.rindex(".", 0, -1) :]], cut=cut, config=config, part=part)
            return Source((_present(stored, architecture, there),), _transposing(make, architecture))
    stored = _present(stored_name(name, architecture), architecture, there)
    is_matrix = architecture.is_transposed and name.startswith("layers.")
    return Source((stored,), Tensor.t if is_matrix and "norm" not in name and name.endswith("weight") else _as_stored)


def stored_name(name: str, architecture: Architecture) -> str:
    """The checkpoint's name of one of our parameters."""
    stored = name
    for ours, theirs in architecture.names.items():
        if ours in name:
            stored = stored.replace(ours, theirs, 1)
    return stored if name.startswith("head.lm_head") else architecture.prefix + stored


def _present(stored: str, architecture: Architecture, there: frozenset[str]) -> str:
    """The name as it stands in the file: base models leave the prefix out."""
    bare = stored.removeprefix(architecture.prefix)
    return bare if stored not in there and bare in there else stored


def _experts(name: str, architecture: Architecture, count: int, there: frozenset[str]) -> Source:
    """Experts as one tensor, from one tensor each or as they are."""
    layer, _, projection = name.rpartition(".")
    stacked = _present(stored_name(f"{layer}.experts.{projection}", architecture), architecture, there)
    if stacked in there:
        return Source((stacked,), _as_stored)
    projections = ("gate_proj", "up_proj") if projection == "gate_up_proj" else ("down_proj",)
    if count > len(there):
        raise ArtifactError(f"config.json says there are {count} experts and the checkpoint has {len(there)} tensors")
    names = (f"{layer}.experts.{expert}.{one}.weight" for expert in range(count) for one in projections)
    return Source(
        tuple(_present(stored_name(one, architecture), architecture, there) for one in names),
        partial(_stacked, per_expert=len(projections)),
    )


def _as_stored(tensor: Tensor) -> Tensor:
    return tensor


def _transposing(make: Callable[..., Tensor], architecture: Architecture) -> Callable[..., Tensor]:
    if not architecture.is_transposed:
        return make
    return lambda tensor: make(tensor.t() if tensor.dim() == 2 else tensor)


def _stacked(*tensors: Tensor, per_expert: int) -> Tensor:
    """[E, rows of all projections of an expert, columns]"""
    joined = torch.stack(tensors)  # [E * projections, rows, columns]
    return joined.view(-1, per_expert * joined.shape[1], joined.shape[2])


def _cut(tensor: Tensor, place: int, cut: str, config: LMConfig, part: str) -> Tensor:
    """One projection of a fused tensor [rows, ...]: a run of its rows, or of the rows of each head."""
    if cut == "heads":
        heads = tensor.view(config.num_attention_heads, 3, config.head_size, *tensor.shape[1:])
        return heads[:, place].flatten(0, 1)
    query, kv = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    sizes = [query, kv, kv] if part.startswith(".self_attn") else [config.intermediate_size] * 2
    if len(tensor) != sum(sizes):
        raise ArtifactError(f"a fused projection has {len(tensor)} rows; config.json asks for {sum(sizes)}")
    return torch.split(tensor, sizes)[place]


def _parameters(model: LanguageModel) -> list[str]:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [name for name in names if not (model.config.is_tied and name == _TIED)]


def _check_names(
    directory: Path, wanted: dict[str, Source], architecture: Architecture, config: LMConfig, shards: Shards
) -> None:
    used = {name for found in wanted.values() for name in found.names}
    extra = {name for name in shards.names - used if not name.endswith(architecture.ignored)}
    head = stored_name(_TIED, architecture)
    if config.is_tied and head in extra:  # stored twice by some; it must be the same one
        extra.discard(head)
        embedded = shards.read(*wanted["embed.embed_tokens.weight"].names)
        if not torch.equal(shards.read(head), embedded):
            raise ArtifactError(
                f"{directory} has a {head!r} of its own, and config.json says tie_word_embeddings; say false there"
            )
    refuse_differences(directory, used - shards.names, extra)


def _made(shards: Shards, found: Source) -> Tensor:
    return found.make(*(shards.read(name) for name in found.names))
