"""What the config.json of each encoder architecture says, of the body and of the head of a task.

Two functions an architecture, over what they share; transformers' defaults where a file says nothing.
"""

from typing import Any, TypeAlias

from models.encoders.config import Task
from models.errors import ArtifactError
from models.lm.rope import Raw, Rope, read_rope

Fields: TypeAlias = dict[str, Any]


def bert(raw: Raw) -> Fields:
    return {
        "max_length": raw["max_position_embeddings"],
        "num_positions": raw["max_position_embeddings"],
        "num_token_types": raw.get("type_vocab_size", 2),
        "norm_eps": raw.get("layer_norm_eps", 1e-12),
        "activation": raw.get("hidden_act", "gelu"),
    }


def roberta(raw: Raw) -> Fields:
    pad = raw.get("pad_token_id", 1)
    if type(pad) is not int or pad < 0:
        raise ArtifactError(f"config.json says pad_token_id = {pad!r}; positions are counted from it")
    return {**bert(raw), "pad_token_id": pad, "max_length": raw["max_position_embeddings"] - pad - 1}


def distilbert(raw: Raw) -> Fields:
    positions = raw["max_position_embeddings"]
    return {"max_length": positions, "num_positions": positions, "activation": raw.get("activation", "gelu")}


def modernbert(raw: Raw) -> Fields:
    types = _layer_types(raw)
    ropes = {
        "full_attention": _rope(raw, "full_attention", raw.get("global_rope_theta") or 160_000.0),
        "sliding_attention": _rope(raw, "sliding_attention", raw.get("local_rope_theta") or 10_000.0),
    }
    reach = raw.get("local_attention", 128) // 2
    return {
        "max_length": raw["max_position_embeddings"],
        "norm_eps": raw.get("norm_eps", 1e-5),
        "activation": raw.get("hidden_activation", "gelu"),
        "norms_before": True,
        "is_gated": True,
        "has_attention_bias": raw.get("attention_bias", False),
        "has_mlp_bias": raw.get("mlp_bias", False),
        "has_norm_bias": raw.get("norm_bias", False),
        "ropes": tuple(ropes[one] for one in types),
        "reaches": tuple(None if one == "full_attention" else reach for one in types),
    }


def _layer_types(raw: Raw) -> list[str]:
    count, every = raw["num_hidden_layers"], raw.get("global_attn_every_n_layers", 3)
    types = raw.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(count)]
    if not set(types) <= {"full_attention", "sliding_attention"} or len(types) != count:
        raise ArtifactError(
            f"config.json says layer_types = {types!r:.120}; "
            f"each of the {count} layers has full_attention or sliding_attention"
        )
    return list(types)


def _rope(raw: Raw, layer_type: str, theta: float) -> Rope:
    said = (raw.get("rope_parameters") or {}).get(layer_type) or raw.get("rope_scaling") or {}
    rope = read_rope({**raw, "rope_scaling": None, "rope_theta": theta, "rope_parameters": said}, theta)
    if rope.scaling != "default":
        raise ArtifactError(f"config.json says rope_type = {rope.scaling!r}; encoders have 'default' alone")
    return rope


def bert_head(raw: Raw, task: Task) -> Fields:
    if task == "classify":
        return {"pooling": ("cls",), "transform": "tanh"}
    return _masked(raw.get("hidden_act", "gelu")) if task == "fill-mask" else {}


def roberta_head(raw: Raw, task: Task) -> Fields:
    return _masked("gelu") if task == "fill-mask" else bert_head(raw, task)


def distilbert_head(raw: Raw, task: Task) -> Fields:
    if task == "classify":
        return {"pooling": ("cls",), "transform": "relu"}
    return _masked(raw.get("activation", "gelu")) if task == "fill-mask" else {}


def modernbert_head(raw: Raw, task: Task) -> Fields:
    pooling = raw.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise ArtifactError(f"config.json says classifier_pooling = {pooling!r}; known are 'cls' and 'mean'")
    return {
        "pooling": (pooling,) if task == "classify" else (),
        "transform": raw.get("classifier_activation", "gelu"),
        "has_transform_bias": raw.get("classifier_bias", False),
        "has_transform_norm": True,
        "has_out_bias": raw.get("decoder_bias", True) if task == "fill-mask" else True,
    }


def _masked(transform: str) -> Fields:
    return {"transform": transform, "has_transform_norm": True}
