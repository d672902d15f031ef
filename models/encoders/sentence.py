"""What a sentence-transformers directory says beyond the encoder: pooling, projections, prompts, how texts are cut.

Every module it names is computed or refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from models.encoders.config import DenseConfig, EncoderConfig, Pooling, Scores
from models.errors import ArtifactError
from models.shards import Shards, read_json, refuse_differences

MODULES = "modules.json"
_TEXTS, _FACTS = "sentence_bert_config.json", "config_sentence_transformers.json"
_MODULE_FILES = ("config.json", "model.safetensors")
_VECTOR = "sentence_embedding"
_SENTENCE, _CROSS = "SentenceTransformer", "CrossEncoder"
_SCORES: Mapping[str, Scores] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "none",
}
# Of the releases before the sixth, in the order in which they put the vectors side by side.
_OLD_POOLING: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Texts:
    """How texts become tokens: the longest that is read, whether lower case comes first, and texts put before."""

    max_length: int | None = None
    lowers_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def is_sentence(directory: Path) -> bool:
    """Whether a modules.json says what follows the encoder; of a cross-encoder it is the head of its own config.json.

    Raises ArtifactError for the package's other kinds of models.
    """
    if not (directory / MODULES).is_file():
        return False
    kind = _facts(directory).get("model_type", _SENTENCE)
    if kind not in (_SENTENCE, _CROSS):
        raise ArtifactError(f"{directory / _FACTS} says model_type = {kind!r}; known are {_SENTENCE} and {_CROSS}")
    if kind == _CROSS and _modules(directory) != [("Transformer", "")]:
        raise ArtifactError(f"{directory / MODULES} has more than a Transformer, which no {_CROSS} is served with")
    return bool(kind == _SENTENCE)


def cross_scores(raw: Mapping[str, Any], directory: Path) -> Scores | None:
    """How a cross-encoder makes its one output a score, where the directory says so. Raises ArtifactError."""
    said = (
        _facts(directory).get("activation_fn")
        or (raw.get("sentence_transformers") or {}).get("activation_fn")
        or raw.get("sbert_ce_default_activation_function")
    )
    if said is None:
        return None
    if said not in _SCORES:
        raise ArtifactError(f"{directory} says activation_fn = {said!r}; known are {sorted(_SCORES)}")
    return _SCORES[said]


def files(directory: Path) -> list[Path]:
    """What, beside config and weights of the encoder, the model is made of; relative to the directory."""
    if not is_sentence(directory):
        return []
    named = [Path(folder) / name for _, folder in _modules(directory) if folder for name in _MODULE_FILES]
    return [Path(MODULES), *(path for path in named if (directory / path).is_file())]


def with_modules(config: EncoderConfig, directory: Path) -> EncoderConfig:
    """The configuration with pooling, projections and normalisation as modules.json lists them."""
    if not is_sentence(directory):
        return config
    head = replace(config.head, pooling=(), denses=())
    for place, (kind, folder) in enumerate(_modules(directory)):
        if kind == "Transformer":
            _check_encoder(directory, place, folder)
        elif kind == "Pooling" and not head.pooling:
            head = replace(head, pooling=_pooling(directory / folder, config))
        elif kind == "Dense" and head.pooling and not head.is_normal:
            head = replace(head, denses=(*head.denses, _dense(directory, folder)))
        elif kind == "Normalize" and head.pooling:
            _check_names(_config(directory / folder), folder)
            head = replace(head, is_normal=True)
        else:
            raise ArtifactError(
                f"{directory / MODULES} has {kind!r} as module {place}; known are Transformer, Pooling, Dense and "
                "Normalize, in this order"
            )
    if not head.pooling:
        raise ArtifactError(f"{directory / MODULES} names no Pooling; without it there is no embedding")
    _check_sizes(config, head.pooling, head.denses)
    return replace(config, head=head)


def denses(config: EncoderConfig, directory: Path) -> dict[str, Callable[[], Tensor]]:
    """How each parameter of the projections is read. Raises ArtifactError for missing files and pickles."""
    readers: dict[str, Callable[[], Tensor]] = {}
    for place, dense in enumerate(config.head.denses):
        shards = Shards(directory / dense.folder)
        wanted = {"linear.weight", "linear.bias"} if dense.has_bias else {"linear.weight"}
        refuse_differences(directory / dense.folder, wanted - shards.names, shards.names - wanted)
        readers |= {f"head.denses.{place}.{name}": partial(shards.read, name) for name in wanted}
    return readers


def read_texts(directory: Path) -> Texts:
    """What the directory says of texts. Raises ArtifactError for what would change them and is not done here."""
    said, facts = _read_if_there(directory / _TEXTS), _facts(directory)
    if facts.get("truncate_dim"):
        raise ArtifactError(f"{directory / _FACTS} says truncate_dim = {facts['truncate_dim']!r}; leave it out")
    prompts = {str(name): str(text) for name, text in (facts.get("prompts") or {}).items()}
    if any(prompts.values()) and not is_sentence(directory):
        raise ArtifactError(
            f"{directory / _FACTS} has prompts {sorted(prompts)}, which only embeddings are served with"
        )
    default = facts.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ArtifactError(f"{directory / _FACTS} has {default!r} as default_prompt_name and no such prompt")
    _check_prompts(directory, prompts)
    return Texts(said.get("max_seq_length"), bool(said.get("do_lower_case")), prompts, default)


def _modules(directory: Path) -> list[tuple[str, str]]:
    """The last part of each module's class, and its folder."""
    listed = read_json(directory / MODULES, list)
    try:
        modules = [(str(one["type"]).rpartition("."), str(one["path"])) for one in listed]
    except (LookupError, TypeError) as error:
        raise ArtifactError(f"{directory / MODULES} is no list of modules: {error!r}") from error
    for (package, _, name), folder in modules:
        if not package.startswith("sentence_transformers."):
            raise ArtifactError(
                f"{directory / MODULES} asks to run code of its own, {package}.{name}; no checkpoint may here"
            )
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ArtifactError(f"{directory / MODULES} names {folder!r}, which lies outside {directory}")
    return [(name, folder) for (_, _, name), folder in modules]


def _check_encoder(directory: Path, place: int, folder: str) -> None:
    if place or folder:
        raise ArtifactError(
            f"{directory / MODULES} has its Transformer as module {place} in folder {folder!r}; "
            "it must be the first, beside modules.json; save the model again with a newer sentence-transformers"
        )


def _pooling(folder: Path, config: EncoderConfig) -> tuple[Pooling, ...]:
    said = _config(folder)
    width = said.get("embedding_dimension", said.get("word_embedding_dimension", config.hidden_size))
    if width != config.hidden_size:
        raise ArtifactError(f"{folder} pools vectors of {width} numbers; config.json says {config.hidden_size}")
    modes = said.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _OLD_POOLING.items() if said.get(name)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if unknown := [mode for mode in modes if mode not in get_args(Pooling)]:
        raise ArtifactError(f"{folder} pools by {unknown}; known are {list(get_args(Pooling))}")
    return tuple(modes)


def _dense(directory: Path, folder: str) -> DenseConfig:
    said = _config(directory / folder)
    _check_names(said, folder)
    if said.get("use_residual"):
        raise ArtifactError(f"{folder}/config.json says use_residual, which is not supported")
    for name in ("in_features", "out_features"):
        if type(said.get(name)) is not int or said[name] < 1:
            raise ArtifactError(f"{folder}/config.json says {name} = {said.get(name)!r}; it must be a whole number")
    act = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    return DenseConfig(folder, said["in_features"], said["out_features"], said.get("bias", True), str(act))


def _check_names(said: Mapping[str, Any], folder: str) -> None:
    """A module may read the vector and write it, nothing else."""
    for name in ("module_input_name", "module_output_name"):
        if said.get(name) not in (None, _VECTOR):
            raise ArtifactError(f"{folder}/config.json says {name} = {said[name]!r}; only {_VECTOR!r} is supported")


def _check_sizes(config: EncoderConfig, pooling: Sequence[Pooling], chain: Sequence[DenseConfig]) -> None:
    width = len(pooling) * config.hidden_size
    for dense in chain:
        if dense.in_features != width:
            raise ArtifactError(f"{dense.folder} takes {dense.in_features} numbers and gets {width}")
        width = dense.out_features


def _check_prompts(directory: Path, prompts: Mapping[str, str]) -> None:
    excludes = [
        folder
        for kind, folder in (_modules(directory) if any(prompts.values()) else ())
        if kind == "Pooling" and not _config(directory / folder).get("include_prompt", True)
    ]
    if excludes:
        raise ArtifactError(f"{excludes[0]}/config.json says include_prompt is false, which is not supported")


def _config(folder: Path) -> dict[str, Any]:
    return _read_if_there(folder / "config.json")


def _facts(directory: Path) -> dict[str, Any]:
    return _read_if_there(directory / _FACTS)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
