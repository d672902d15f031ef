"""The encoder architectures of Hugging Face checkpoints: how each names its tensors, and what is read of any of them.

One entry an architecture; what its config.json says is in `models.encoders.said`. Whatever would
change what is computed and is not computed here is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from models.encoders import said
from models.encoders.config import EncoderConfig, HeadConfig, Scores, Task
from models.encoders.said import Fields
from models.errors import ArtifactError
from models.lm.rope import Raw

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_REFUSED = (
    "quantization_config",
    "auto_map",
    "is_decoder",
    "is_encoder_decoder",
    "add_cross_attention",
    "pruned_heads",
)
_TASKS: Mapping[str, Task] = {
    "Model": "embed",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tokens",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",  # beside it there is next sentence prediction, which nothing here asks for
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type`.

    classes: what transformers' class names begin with. fields: what its config.json says beyond the sizes. head: what
    it says of the head of a task. prefix: of its tensor names, which base models leave out. names: pieces of our tensor
    names and what stands there instead. heads: the same for each task's head. fused: of our projections, the tensor
    they are rows of. sizes: where config.json has other names of them.
    """

    classes: str
    fields: Callable[[Raw], Fields]
    head: Callable[[Raw, Task], Fields]
    prefix: str
    names: Mapping[str, str]
    heads: Mapping[Task, Mapping[str, str]]
    fused: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)


def read_config(raw: Raw, is_sentence: bool = False) -> EncoderConfig:
    """The configuration of a checkpoint, its embedding the mean of the tokens' states where nothing else is said.

    is_sentence: the directory says what follows the last hidden states, whatever head the weights were saved with.
    Raises ArtifactError for anything that is not computed exactly.
    """
    architecture = ARCHITECTURES[raw["model_type"]]
    raw = {**raw, **{ours: raw.get(theirs) for ours, theirs in architecture.sizes.items()}}
    _check(raw)
    task = "embed" if is_sentence else _task(raw, architecture)
    head = {"pooling": ("mean",)} if task == "embed" else _head(raw, task, architecture)
    fields = {name: raw[name] for name in _SIZES} | architecture.fields(raw)
    config = EncoderConfig(head=HeadConfig(task=task, **head), **fields)
    if config.max_length < 1 or config.num_positions < 0:
        raise ArtifactError(f"config.json leaves room for {config.max_length} tokens; there must be at least 1")
    return config


def _check(raw: Raw) -> None:
    for name in (*_SIZES, "max_position_embeddings"):
        if type(raw.get(name)) is not int or raw[name] < 1:
            raise ArtifactError(f"config.json says {name} = {raw.get(name)!r}; it must be a whole number from 1 on")
    for name in _REFUSED:
        if raw.get(name):
            raise ArtifactError(f"config.json says {name} = {raw[name]!r}, which is not supported; leave it out")
    positions = raw.get("position_embedding_type", "absolute")
    if positions not in (None, "absolute"):
        raise ArtifactError(f"config.json says position_embedding_type = {positions!r}; only 'absolute' is supported")
    heads = raw["num_attention_heads"]
    if raw["hidden_size"] % heads:
        raise ArtifactError(
            f"config.json says num_attention_heads = {heads}, which does not divide hidden_size = {raw['hidden_size']}"
        )


def _task(raw: Raw, architecture: Architecture) -> Task:
    (name, *_) = raw.get("architectures") or (f"{architecture.classes}Model",)
    head = str(name).removeprefix(architecture.classes)
    if head not in _TASKS:
        known = [architecture.classes + one for one in _TASKS]
        raise ArtifactError(f"config.json says the architecture is {name!r}; known are {known}")
    return _TASKS[head]


def _head(raw: Raw, task: Task, architecture: Architecture) -> Fields:
    if task == "fill-mask":
        is_tied = raw.get("tie_word_embeddings", True) is not False
        return {"num_outputs": raw["vocab_size"], "is_tied": is_tied, **architecture.head(raw, task)}
    labels = _labels(raw)
    head = {"num_outputs": len(labels), "labels": labels, **architecture.head(raw, task)}
    return {**head, "scores": _scores(raw, len(labels))} if task == "classify" else head


def _labels(raw: Raw) -> tuple[str, ...]:
    """Names of the outputs, in their order; transformers has two if nothing is said."""
    labels = raw.get("id2label")
    if not labels:
        return tuple(f"LABEL_{i}" for i in range(raw.get("num_labels") or 2))
    try:
        named = {int(number): str(label) for number, label in labels.items()}
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"config.json says id2label = {labels!r:.80}; it must name each number's label") from error
    if sorted(named) != list(range(len(named))):
        raise ArtifactError(f"config.json says id2label for {sorted(named)[:10]}; labels must be numbered from 0 on")
    return tuple(named[number] for number in range(len(named)))


def _scores(raw: Raw, num_labels: int) -> Scores:
    """As transformers' pipeline does."""
    problem = raw.get("problem_type")
    if problem not in (None, "regression", "single_label_classification", "multi_label_classification"):
        raise ArtifactError(f"config.json says problem_type = {problem!r}, which is not known; leave it out")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or num_labels == 1 else "softmax"


_BERT_NAMES = {
    "embed.word.": "embeddings.word_embeddings.",
    "embed.position.": "embeddings.position_embeddings.",
    "embed.token_type.": "embeddings.token_type_embeddings.",
    "embed.norm.": "embeddings.LayerNorm.",
    "layers.": "encoder.layer.",
    ".attention.q_proj.": ".attention.self.query.",
    ".attention.k_proj.": ".attention.self.key.",
    ".attention.v_proj.": ".attention.self.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".attention_norm.": ".attention.output.LayerNorm.",
    ".mlp.up_proj.": ".intermediate.dense.",
    ".mlp.down_proj.": ".output.dense.",
    ".mlp_norm.": ".output.LayerNorm.",
}
_OUT = "head.project.out."
_DENSE, _NORM = "head.project.dense.", "head.project.norm."
_ROBERTA_HEADS: Mapping[Task, Mapping[str, str]] = {
    "classify": {_DENSE: "classifier.dense.", _OUT: "classifier.out_proj."},
    "tokens": {_OUT: "classifier."},
    "fill-mask": {
        _DENSE: "lm_head.dense.",
        _NORM: "lm_head.layer_norm.",
        f"{_OUT}weight": "lm_head.decoder.weight",
        f"{_OUT}bias": "lm_head.bias",
    },
}
_FUSED = {f".attention.{name}_proj.": (".attn.Wqkv.", place) for place, name in enumerate("qkv")}

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(
        "Bert",
        said.bert,
        said.bert_head,
        "bert.",
        _BERT_NAMES,
        {
            "classify": {_DENSE: "bert.pooler.dense.", _OUT: "classifier."},
            "tokens": {_OUT: "classifier."},
            "fill-mask": {
                _DENSE: "cls.predictions.transform.dense.",
                _NORM: "cls.predictions.transform.LayerNorm.",
                f"{_OUT}weight": "cls.predictions.decoder.weight",
                f"{_OUT}bias": "cls.predictions.bias",
            },
        },
    ),
    "roberta": Architecture("Roberta", said.roberta, said.roberta_head, "roberta.", _BERT_NAMES, _ROBERTA_HEADS),
    "xlm-roberta": Architecture("XLMRoberta", said.roberta, said.roberta_head, "roberta.", _BERT_NAMES, _ROBERTA_HEADS),
    "distilbert": Architecture(
        "DistilBert",
        said.distilbert,
        said.distilbert_head,
        "distilbert.",
        {
            **_BERT_NAMES,
            "layers.": "transformer.layer.",
            ".attention.q_proj.": ".attention.q_lin.",
            ".attention.k_proj.": ".attention.k_lin.",
            ".attention.v_proj.": ".attention.v_lin.",
            ".attention.o_proj.": ".attention.out_lin.",
            ".attention_norm.": ".sa_layer_norm.",
            ".mlp.up_proj.": ".ffn.lin1.",
            ".mlp.down_proj.": ".ffn.lin2.",
            ".mlp_norm.": ".output_layer_norm.",
        },
        {
            "classify": {_DENSE: "pre_classifier.", _OUT: "classifier."},
            "tokens": {_OUT: "classifier."},
            "fill-mask": {_DENSE: "vocab_transform.", _NORM: "vocab_layer_norm.", _OUT: "vocab_projector."},
        },
        sizes={
            "hidden_size": "dim",
            "intermediate_size": "hidden_dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
        },
    ),
    "modernbert": Architecture(
        "ModernBert",
        said.modernbert,
        said.modernbert_head,
        "model.",
        {
            "embed.word.": "embeddings.tok_embeddings.",
            "embed.norm.": "embeddings.norm.",
            ".attention.o_proj.": ".attn.Wo.",
            ".attention_norm.": ".attn_norm.",
            ".mlp.down_proj.": ".mlp.Wo.",
            "head.norm.": "final_norm.",
        },
        {
            "classify": {_DENSE: "head.dense.", _NORM: "head.norm.", _OUT: "classifier."},
            "tokens": {_DENSE: "head.dense.", _NORM: "head.norm.", _OUT: "classifier."},
            "fill-mask": {_DENSE: "head.dense.", _NORM: "head.norm.", _OUT: "decoder."},
        },
        fused={**_FUSED, ".mlp.gate_proj.": (".mlp.Wi.", 0), ".mlp.up_proj.": (".mlp.Wi.", 1)},
    ),
}
