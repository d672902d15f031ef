"""A checkpoint without some of its layers, or without the attention or the MLP of some."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporters.passes.influence import Unit, influence
from exporters.passes.rewrite import read_tensors, rewrite
from exporters.samples import read_samples
from models.checkpoint import load_checkpoint, read_raw
from models.errors import InputError
from models.layered import LayeredModel
from models.lm.architectures import ARCHITECTURES
from models.lm.model import LanguageModel
from models.lm.residual import Residual
from models.lm.sources import source
from models.lm.wrapping import OURS

_LAYER = re.compile(r"(?<![^.])(layers|h)\.(\d+)\.")
# Where config.json counts the layers: decoders, GPT-2, our own stacks.
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_HALVES: Mapping[Unit, tuple[str, ...]] = {
    "attention": ("self_attn.", "input_layernorm.", "attention_out_norm."),
    "mlp": ("mlp.", "post_attention_layernorm.", "mlp_out_norm."),
}
# Samples on which influence is measured.
_SAMPLES = 256


def choose(checkpoint: Path, count: int, unit: Unit, samples: Path) -> list[int]:
    """The `count` layers whose unit has the least influence on the samples, in order. Raises InputError."""
    model = load_checkpoint(checkpoint)
    if not 1 <= count < len(model.layers):
        raise InputError(
            f"{count} of {len(model.layers)} layers cannot be dropped; choose 1 to {len(model.layers) - 1}"
        )
    found = influence(model, read_samples(samples, model, checkpoint, _SAMPLES), unit)
    return sorted(sorted(range(len(found)), key=lambda layer: found[layer])[:count])


def drop(checkpoint: Path, target: Path, dropped: Sequence[int], unit: Unit = "layer") -> None:
    """Write the checkpoint without the named layers, or without their attention or MLP.

    Raises InputError for layers it does not have, or whose loss config.json cannot say.
    """
    model = load_checkpoint(checkpoint, dtype=None)
    _check(model, dropped)
    done = f"dropped {unit} {','.join(map(str, dropped))}"
    if unit == "layer":
        _drop_layers(checkpoint, target, model, set(dropped), done)
    else:
        _drop_halves(checkpoint, target, model, dropped, unit, done)


def _check(model: LayeredModel, dropped: Sequence[int]) -> None:
    count = len(model.layers)
    wrong = [layer for layer in dropped if not 0 <= layer < count]
    if wrong or not dropped or len(set(dropped)) >= count:
        raise InputError(f"layers {list(dropped)} cannot be dropped of {count}; name some of 0 to {count - 1}, not all")


def _drop_layers(checkpoint: Path, target: Path, model: LayeredModel, dropped: set[int], done: str) -> None:
    kept = [layer for layer in range(len(model.layers)) if layer not in dropped]
    raw = read_raw(checkpoint)
    count = next(name for name in _COUNTS if name in raw)
    config = {**raw, count: len(kept), **(_renumbered(model, raw, kept) if isinstance(model, LanguageModel) else {})}
    place = {layer: i for i, layer in enumerate(kept)}
    tensors = {}
    for name, tensor in read_tensors(checkpoint).items():
        found = _LAYER.search(name)
        if found is None:
            tensors[name] = tensor
        elif int(found[2]) in place:
            tensors[f"{name[: found.start(2)]}{place[int(found[2])]}{name[found.end(2) :]}"] = tensor
    rewrite(checkpoint, target, tensors, config, done)


def _renumbered(model: LanguageModel, raw: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """What config.json says of single layers, for those that are left."""
    config, changes = model.config, dict[str, Any]()
    if config.is_scaled_by_depth:
        raise InputError("the model scales attention by the number of its layer, which dropping changes; keep them all")
    if config.windowed_layers or "layer_types" in raw:
        types = {True: "sliding_attention", False: "full_attention"}
        changes["layer_types"] = [types[layer in config.windowed_layers] for layer in kept]
    if config.experts and "moe_intermediate_size" in raw:
        dense = [i for i, layer in enumerate(kept) if layer not in config.experts.layers]
        changes.update(mlp_only_layers=dense, decoder_sparse_step=1)
    if config.residual.has_slots:
        raise InputError(
            f"residual form {config.residual.text} goes by the numbers of the layers, which dropping changes; "
            "leave layers out of the chain instead"
        )
    if config.residual.layers is not None:
        changes["residual"] = _left(config.residual, kept).said()
    absent = {name: getattr(config, name) for name in ("without_attention", "without_mlp")}
    if any(absent.values()):
        left = {name: [i for i, layer in enumerate(kept) if layer in layers] for name, layers in absent.items()}
        changes[OURS] = {**raw[OURS], **left}
    return changes


def _left(residual: Residual, kept: Sequence[int]) -> Residual:
    """The form of the layers that are left of a hybrid."""
    layers = tuple(i for i, layer in enumerate(kept) if residual.is_ladder(layer))
    return replace(residual, layers=layers) if layers else Residual(is_trained=residual.is_trained)


def _drop_halves(
    checkpoint: Path, target: Path, model: LayeredModel, dropped: Sequence[int], unit: Unit, done: str
) -> None:
    if not isinstance(model, LanguageModel):
        raise InputError(f"layers of {type(model).__name__} have no {unit} of their own; drop whole layers")
    raw, tensors = read_raw(checkpoint), read_tensors(checkpoint)
    there = frozenset(tensors)
    architecture = ARCHITECTURES[raw["model_type"]]
    names = (f"layers.{layer}.{name}" for layer in dropped for name, _ in model.layers[layer].named_parameters())
    lost = (name for name in names if name.split(".", 2)[2].startswith(_HALVES[unit]))
    gone = {stored for name in lost for stored in source(name, architecture, model.config, there).names}
    field = "without_attention" if unit == "attention" else "without_mlp"
    layers = sorted({*getattr(model.config, field), *dropped})
    rewrite(checkpoint, target, {n: t for n, t in tensors.items() if n not in gone}, raw, done, **{field: layers})
