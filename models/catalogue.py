"""The catalogue: architectures of papers, one file each, found by name. Knows no task and no training.

An architecture is a class that is told its sizes by a dataclass `Config`, whose defaults are those of the shipped
weights, and says which paper it is of (`about`) and what goes in and comes out (`inputs`, `outputs`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from safetensors.torch import save_file

from models.artifact import TensorSpec
from models.errors import ArtifactError
from models.layered import LayeredModel
from models.lm.wrapping import OURS
from models.shards import Shards, load_into, refuse_differences

# Of each `model_type`, where its class is. One line makes an architecture known to everything.
_PLACES: Mapping[str, str] = {
    "residual_mlp": "models.mixers.residual_mlp:ResidualMLP",
    "hourglass": "models.mixers.hourglass:Hourglass",
    "raft-mlp": "models.mixers.raft_mlp:RaftMLP",
    "strip-mlp": "models.mixers.strip_mlp:StripMLP",
    "scaling-mlp": "models.mixers.scaling_mlp:ScalingMLP",
    "ninformer": "models.mixers.ninformer:NiNformer",
    "g2gnet": "models.mixers.g2gnet:G2GNet",
    "quadratic": "models.mixers.quadratic:Quadratic",
    "af-kan": "models.kan.af_kan:AFKan",
    "af-kan-stack": "models.kan.af_kan:AFKanStack",
    "s-kan": "models.kan.s_kan:SKan",
    "s-conv-kan": "models.kan.s_conv_kan:SConvKan",
    "polycom": "models.kan.polycom:PolyCom",
    "gla": "models.recurrent.gla:GLA",
    "lssl": "models.recurrent.lssl:LSSL",
    "aaren": "models.recurrent.aaren:Aaren",
    "tcnca": "models.recurrent.tcnca:TCNCA",
    "delta-net": "models.recurrent.delta_net:DeltaNet",
    "diagonal": "models.recurrent.diagonal:Diagonal",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a paper says of an architecture, and the test that holds it here."""

    text: str
    test: str


@dataclass(frozen=True, slots=True)
class About:
    """Where an architecture comes from: the row of our list of papers (S0xx), title and address of the paper.

    claims: what is true of the equations, whatever the weights. knobs: names of what a request may set beside a chain.
    """

    row: str
    title: str
    paper: str
    claims: tuple[Claim, ...] = ()
    knobs: tuple[str, ...] = ()


class Architecture(Protocol):
    """A class of the catalogue."""

    about: ClassVar[About]
    Config: ClassVar[type[Any]]
    config: Any

    def __init__(self, config: Any) -> None: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What goes in; -1 is a size that may differ, the first is the batch."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue, at the sizes of the shipped weights."""

    name: str
    class_name: str
    about: About
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_layers: int

    @property
    def is_stack(self) -> bool:
        """Whether requests may choose a chain."""
        return self.num_layers > 0


def names() -> tuple[str, ...]:
    """Every `model_type` of the catalogue."""
    return tuple(_PLACES)


def find(name: str) -> type[Architecture]:
    """The class of a `model_type`. Raises ArtifactError listing those there are."""
    if name not in _PLACES:
        raise ArtifactError(f"no architecture {name!r} in the catalogue; it has {sorted(_PLACES)}")
    module, _, attribute = _PLACES[name].partition(":")
    return cast("type[Architecture]", getattr(import_module(module), attribute))


def specs_of(model: LayeredModel) -> tuple[TensorSpec, TensorSpec] | None:
    """What goes into and comes out of a model of the catalogue; None for another one.

    Raises ArtifactError for a form that is for training alone.
    """
    if not isinstance(model, tuple(map(find, _PLACES))):
        return None
    if model.unservable:
        raise ArtifactError(f"{type(model).__name__} cannot be exported: {model.unservable}")
    (given,), (made,) = cast("Architecture", model).inputs, cast("Architecture", model).outputs
    return given, made


def catalogue() -> tuple[Entry, ...]:
    """What there is: imports every architecture and builds it without weights."""
    return tuple(_entry(name) for name in _PLACES)


def load(directory: Path, dtype: torch.dtype | None = torch.float32) -> LayeredModel:
    """The model of a checkpoint directory, ready for inference, in `dtype`, or None for the one it is stored in.

    Raises ArtifactError naming what of config.json or of the tensors does not fit the architecture.
    """
    raw = json.loads((directory / "config.json").read_text())
    shards = Shards(directory)
    with torch.device("meta"):
        model = _build(raw, directory)
    wanted = model.state_dict().keys()
    refuse_differences(directory, wanted - shards.names, shards.names - wanted)
    parameters = dict(model.named_parameters())
    load_into(model, {name: partial(shards.read, name) for name in wanted & parameters.keys()}, dtype)
    for name in wanted - parameters.keys():
        _set_buffer(model, name, shards.read(name))
    return model.eval()


def save(model: LayeredModel, directory: Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    name = next(name for name in _PLACES if type(model) is cast("type[LayeredModel]", find(name)))
    config = asdict(cast("Architecture", model).config)
    raw = {"architectures": [type(model).__name__], "model_type": name, **config}
    (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)


def _entry(name: str) -> Entry:
    architecture = find(name)
    with torch.device("meta"):
        model = architecture(architecture.Config())
    layered = cast("LayeredModel", model)
    return Entry(
        name, type(model).__name__, model.about, layered.kind, model.inputs, model.outputs, len(layered.layers)
    )


def _build(raw: Mapping[str, Any], directory: Path) -> LayeredModel:
    architecture = find(raw["model_type"])
    said = {name: raw[name] for name in raw.keys() - {"architectures", "model_type", OURS}}
    known = {field.name for field in fields(architecture.Config)}
    if said.keys() != known:
        raise ArtifactError(
            f"{directory / 'config.json'} of a {raw['model_type']!r} lacks {sorted(known - said.keys())} and has "
            f"{sorted(said.keys() - known)} that is not known; save the checkpoint again"
        )
    config = architecture.Config(**{n: tuple(v) if isinstance(v, list) else v for n, v in said.items()})
    return cast("LayeredModel", architecture(config))


def _set_buffer(model: LayeredModel, name: str, tensor: torch.Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    holder = model.get_submodule(owner)
    wanted = getattr(holder, attribute)
    if tensor.shape != wanted.shape:
        raise ArtifactError(
            f"tensor {name!r} has shape {list(tensor.shape)}, config.json asks for {list(wanted.shape)}"
        )
    holder.register_buffer(attribute, tensor)
