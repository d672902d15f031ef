"""One rank's part of a language model as a backend. Every rank makes the same calls in the same order.

What is still on its way between the ranks travels in the carry: rows are selected, merged and joined without waiting.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.artifact import LanguageSpec, Manifest
from models.errors import ArtifactError, BackendError
from models.parallel.group import Group
from models.parallel.model import ShardedModel
from models.parallel.stages import Stages
from models.parallel.stream import Stream, join
from models.parallel.weights import load_shard
from service.backends.kv import PAGE_SIZE
from service.backends.parts import LanguageBackend, Parts
from service.backends.protocol import Array, Dtype
from service.backends.torch_arrays import TorchArrays, module_part, torch_device, torch_dtype


class ShardedArrays(TorchArrays):
    """Tensors of one rank, and streams whose rows have pieces on their way."""

    def __init__(self, group: Group, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self.group = group

    def join(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return join(arrays) if isinstance(arrays[0], Stream) else super().join(arrays, axis)

    def give_out(self, array: Tensor | Stream) -> Array:
        return super().give_out(array.whole(self.group) if isinstance(array, Stream) else array)


def open_sharded(
    manifest: Manifest,
    directory: Path,
    group: Group,
    num_pages: int = 0,
    page_size: int = PAGE_SIZE,
    dtype: Dtype = "auto",
    device: str = "cpu",
) -> LanguageBackend:
    """This rank's part of an artifact, as `load_part` loads it, as a backend. Raises BackendError."""
    shard = load_part(manifest, directory, group, dtype, device)
    assert manifest.language is not None
    return sharded_backend(shard, manifest.language, num_pages, page_size)


def load_part(
    manifest: Manifest,
    directory: Path,
    group: Group,
    dtype: Dtype = "auto",
    device: str = "cpu",
    stages: Stages | None = None,
    stage: int = 0,
) -> ShardedModel:
    """Load this rank's slices of an artifact's safetensors form, in a pipeline those of its stage.

    Raises BackendError if it has none, if it is no language model, or if it cannot be dealt out to so many ranks.
    """
    form, language = manifest.forms.get("safetensors"), manifest.language
    if language is None or form is None or form.whole is None:
        raise BackendError(
            f"model {manifest.name!r} has the kind {manifest.kind!r} and the forms {sorted(manifest.forms)}; several "
            "ranks serve a causal-lm in the form safetensors: export it again"
        )
    place = torch_device(device)
    try:
        folder = (directory / form.whole).parent
        return load_shard(folder, group, torch_dtype(dtype, place), stages, stage).to(place)
    except ArtifactError as error:
        raise BackendError(f"{form.whole} does not load in torch: {error}") from error


def sharded_backend(
    shard: ShardedModel,
    language: LanguageSpec,
    num_pages: int = 0,
    page_size: int = PAGE_SIZE,
    arrays: ShardedArrays | None = None,
) -> LanguageBackend:
    """The backend of one rank's part of a model that `language` describes whole."""
    found = arrays or ShardedArrays(shard.group, device_of(shard), shard.dtype)
    return LanguageBackend(parts_of(shard), local_spec(shard, language), found, num_pages, page_size)


def parts_of(shard: ShardedModel) -> Parts:
    """The callables of one rank's part of a model."""
    layers = tuple(module_part(layer) for layer in shard.layers)
    return Parts(module_part(shard.embed), layers, module_part(shard.head))


def local_spec(shard: ShardedModel, language: LanguageSpec) -> LanguageSpec:
    """What `language` says of the whole model, said of this rank's heads of keys and values."""
    return language.model_copy(update={"num_kv_heads": shard.local.num_key_value_heads})


def device_of(shard: ShardedModel) -> torch.device:
    """Where the weights are."""
    return shard.embed.embed_tokens.weight.device
