"""What the config.json of each decoder architecture says, as fields of `LMConfig` beyond the sizes.

One function an architecture, over what they share; transformers' defaults where a file says nothing.
"""

from typing import Any, TypeAlias

from models.errors import ArtifactError
from models.lm.config import ExpertsConfig
from models.lm.rope import Raw, read_rope

Fields: TypeAlias = dict[str, Any]


def _rms(raw: Raw) -> Fields:
    """What the Llama family shares."""
    return {
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope": read_rope(raw),
        "head_dim": raw.get("head_dim"),
        "activation": raw.get("hidden_act", "silu"),
        "is_tied": raw.get("tie_word_embeddings", False),
    }


def llama(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {**_rms(raw), "qkv_bias": bias, "output_bias": bias, "mlp_bias": raw.get("mlp_bias", False)}


def mistral(raw: Raw) -> Fields:
    return {**_rms(raw), **_windows(raw, range(raw["num_hidden_layers"]))}


def qwen2(raw: Raw) -> Fields:
    first = raw.get("max_window_layers", 28) if raw.get("use_sliding_window") else raw["num_hidden_layers"]
    return {**_rms(raw), "qkv_bias": True, **_windows(raw, range(first, raw["num_hidden_layers"]))}


def qwen3(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {
        **qwen2(raw),
        "qk_norm": "head",
        "qkv_bias": bias,
        "output_bias": bias,
        "head_dim": raw.get("head_dim", 128),
    }


def qwen2_moe(raw: Raw) -> Fields:
    count = raw["num_hidden_layers"] if raw.get("use_sliding_window") else 0
    windowed = range(0, min(count, raw.get("max_window_layers", 28)), 2)
    return {
        **_rms(raw),
        "qkv_bias": raw.get("qkv_bias", True),
        **_windows(raw, windowed),
        "experts": _sparse(raw, shared_size=raw.get("shared_expert_intermediate_size", 5632)),
    }


def qwen3_moe(raw: Raw) -> Fields:
    windowed = range(raw["num_hidden_layers"] if raw.get("use_sliding_window") else 0)
    return {
        **qwen3(raw),
        "head_dim": raw.get("head_dim"),
        **_windows(raw, windowed),
        "experts": _sparse(raw),
    }


def olmoe(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    experts = ExpertsConfig(
        count=raw.get("num_experts", 64),
        per_token=raw.get("num_experts_per_tok", 8),
        intermediate_size=raw["intermediate_size"],
        layers=tuple(range(raw["num_hidden_layers"])),
        has_normal_weights=raw.get("norm_topk_prob", False),
    )
    bound = raw.get("clip_qkv")
    return {
        **_rms(raw),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": "all",
        "qkv_bound": bound,
        "experts": experts,
    }


def olmo2(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {**_rms(raw), "qkv_bias": bias, "output_bias": bias, "qk_norm": "all", "norm_place": "after"}


def phi3(raw: Raw) -> Fields:
    return {**_rms(raw), **_windows(raw, range(raw["num_hidden_layers"]))}


def gemma2(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {
        **_rms(raw),
        **_windows(raw, range(0, raw["num_hidden_layers"], 2)),
        "head_dim": raw.get("head_dim", 256),
        "norm": "offset_rms",
        "norm_place": "both",
        "activation": raw.get("hidden_activation") or "gelu_pytorch_tanh",
        "qkv_bias": bias,
        "output_bias": bias,
        "attention_scale": raw.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": raw.get("attn_logit_softcapping", 50.0),
        "logit_softcap": raw.get("final_logit_softcapping", 30.0),
        "embedding_scale": raw["hidden_size"] ** 0.5,
        "is_tied": raw.get("tie_word_embeddings", True),
    }


def gpt2(raw: Raw) -> Fields:
    return {
        **_classic(raw, "activation_function", "gelu_new", "layer_norm_epsilon"),
        "intermediate_size": raw.get("n_inner") or 4 * raw["hidden_size"],
        "num_key_value_heads": raw["num_attention_heads"],
        "rope": None,
        "attention_scale": None if raw.get("scale_attn_weights", True) else 1.0,
        "is_scaled_by_depth": raw.get("scale_attn_by_inverse_layer_idx", False),
        "is_tied": raw.get("tie_word_embeddings", True),
    }


def gpt_neox(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", True)
    return {
        **_classic(raw, "hidden_act", "gelu", "layer_norm_eps"),
        "num_key_value_heads": raw["num_attention_heads"],
        "rope": read_rope(raw, raw.get("rotary_emb_base", 10_000.0), raw.get("rotary_pct", 0.25)),
        "is_parallel": raw.get("use_parallel_residual", True),
        "qkv_bias": bias,
        "output_bias": bias,
        "is_tied": raw.get("tie_word_embeddings", False),
    }


def _classic(raw: Raw, activation: str, default: str, eps: str) -> Fields:
    """GPT-2's kind of block: layer norms and biases everywhere, no gate."""
    return {
        "norm": "layer",
        "norm_eps": raw.get(eps, 1e-5),
        "activation": raw.get(activation, default),
        "is_gated": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    }


def _windows(raw: Raw, default: range) -> Fields:
    """Layers that see a window: as `layer_types` says, or else those of the architecture's own rule."""
    window, types = raw.get("sliding_window"), raw.get("layer_types")
    layers = tuple(default) if types is None else tuple(i for i, t in enumerate(types) if t == "sliding_attention")
    if types is not None and not set(types) <= {"sliding_attention", "full_attention"}:
        raise ArtifactError(f"config.json says layer_types = {types!r}; known are full_attention and sliding_attention")
    if types is not None and len(types) != raw["num_hidden_layers"]:
        raise ArtifactError(f"config.json lists {len(types)} layer_types for {raw['num_hidden_layers']} layers")
    if raw.get("use_sliding_window") is False or not window or not layers:
        return {}
    return {"sliding_window": window, "windowed_layers": layers}


def _sparse(raw: Raw, shared_size: int | None = None) -> ExpertsConfig:
    step, dense = raw.get("decoder_sparse_step", 1), set(raw.get("mlp_only_layers") or ())
    return ExpertsConfig(
        count=raw.get("num_experts") or raw["num_local_experts"],
        per_token=raw["num_experts_per_tok"],
        intermediate_size=raw["moe_intermediate_size"],
        layers=tuple(i for i in range(raw["num_hidden_layers"]) if i not in dense and (i + 1) % step == 0),
        has_normal_weights=raw.get("norm_topk_prob", False),
        shared_size=shared_size,
    )
