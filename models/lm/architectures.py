"""The decoder architectures of Hugging Face checkpoints: what each says in config.json, and how it names its tensors.

One entry an architecture; what they share is read once. Whatever would change what is computed and is not computed
here is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from models.errors import ArtifactError
from models.lm.config import ExpertsConfig, LMConfig
from models.lm.rope import Raw, read_rope

Fields: TypeAlias = dict[str, Any]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type`.

    fields: what its config.json says beyond the sizes. prefix: of its tensor names, which base models leave out.
    names: pieces of our tensor names and what stands there instead, the first that fits of each pair replaced.
    fused: of our projections, the tensor they are part of and how it is cut. ignored: buffers old checkpoints hold.
    """

    fields: Callable[[Raw], Fields]
    prefix: str = "model."
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    is_transposed: bool = False
    sizes: Mapping[str, str] = field(default_factory=dict)


def read_config(raw: Raw, model_type: str) -> LMConfig:
    """The configuration of a checkpoint. Raises ArtifactError for anything that is not computed exactly."""
    architecture = ARCHITECTURES[model_type]
    named = {**raw, **{ours: raw.get(theirs) for ours, theirs in architecture.sizes.items()}}
    _refuse(named)
    _check_sizes(named, _SIZES)
    fields = architecture.fields(named)
    named["intermediate_size"] = fields.pop("intermediate_size", raw.get("intermediate_size"))
    _check_sizes(named, ("intermediate_size",))
    heads = named["num_attention_heads"]
    if fields.get("head_dim") == named["hidden_size"] / heads:
        fields["head_dim"] = None  # what it is if nothing is said
    eos = raw.get("eos_token_id")
    config = LMConfig(
        **{name: named[name] for name in (*_SIZES, "intermediate_size")},
        num_key_value_heads=fields.pop("num_key_value_heads", None) or raw.get("num_key_value_heads") or heads,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        pad_token_id=raw.get("pad_token_id"),
        **fields,
        **_ours(raw.get("fathom", {})),
    )
    _check_heads(config)
    return config


def _check_sizes(raw: Raw, names: Sequence[str]) -> None:
    for name in names:
        if type(raw.get(name)) is not int or raw[name] < 1:
            raise ArtifactError(f"config.json says {name} = {raw.get(name)!r}; it must be a whole number from 1 on")


def _refuse(raw: Raw) -> None:
    for name in ("quantization_config", "use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder"):
        if raw.get(name):
            raise ArtifactError(f"config.json says {name} = {raw[name]!r}, which is not supported; leave it out")
    if raw.get("pretraining_tp", 1) not in (None, 1):
        raise ArtifactError(f"config.json says pretraining_tp = {raw['pretraining_tp']!r}; only 1 is supported")


def _ours(said: Raw) -> Fields:
    """What only our own passes write into a config.json."""
    without = {name: tuple(said.get(name, ())) for name in ("without_attention", "without_mlp")}
    return {**without, "kept_weights": said.get("kept_weights")}


def _check_heads(config: LMConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if config.head_dim is None and config.hidden_size % heads:
        raise ArtifactError(
            f"config.json says num_attention_heads = {heads}, which does not divide hidden_size = {config.hidden_size}"
        )
    if type(kv_heads) is not int or kv_heads < 1 or heads % kv_heads:
        raise ArtifactError(f"config.json says num_key_value_heads = {kv_heads!r}; it must divide {heads} heads")
    if config.rotary_size % 2:
        raise ArtifactError(f"config.json turns {config.rotary_size} numbers of a head; they turn in pairs")


def _rms(raw: Raw) -> Fields:
    """What the Llama family shares."""
    return {
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope": read_rope(raw),
        "head_dim": raw.get("head_dim"),
        "activation": raw.get("hidden_act", "silu"),
        "is_tied": raw.get("tie_word_embeddings", False),
    }


def _llama(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {**_rms(raw), "qkv_bias": bias, "output_bias": bias, "mlp_bias": raw.get("mlp_bias", False)}


def _mistral(raw: Raw) -> Fields:
    return {**_rms(raw), **_windows(raw, range(raw["num_hidden_layers"]))}


def _qwen2(raw: Raw) -> Fields:
    first = raw.get("max_window_layers", 28) if raw.get("use_sliding_window") else raw["num_hidden_layers"]
    return {**_rms(raw), "qkv_bias": True, **_windows(raw, range(first, raw["num_hidden_layers"]))}


def _qwen3(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {
        **_qwen2(raw),
        "qk_norm": "head",
        "qkv_bias": bias,
        "output_bias": bias,
        "head_dim": raw.get("head_dim", 128),
    }


def _qwen2_moe(raw: Raw) -> Fields:
    count = raw["num_hidden_layers"] if raw.get("use_sliding_window") else 0
    windowed = range(0, min(count, raw.get("max_window_layers", 28)), 2)
    return {
        **_rms(raw),
        "qkv_bias": raw.get("qkv_bias", True),
        **_windows(raw, windowed),
        "experts": _sparse(raw, shared_size=raw.get("shared_expert_intermediate_size", 5632)),
    }


def _qwen3_moe(raw: Raw) -> Fields:
    windowed = range(raw["num_hidden_layers"] if raw.get("use_sliding_window") else 0)
    return {
        **_qwen3(raw),
        "head_dim": raw.get("head_dim"),
        **_windows(raw, windowed),
        "experts": _sparse(raw),
    }


def _olmoe(raw: Raw) -> Fields:
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


def _olmo2(raw: Raw) -> Fields:
    bias = raw.get("attention_bias", False)
    return {**_rms(raw), "qkv_bias": bias, "output_bias": bias, "qk_norm": "all", "norm_place": "after"}


def _phi3(raw: Raw) -> Fields:
    return {**_rms(raw), **_windows(raw, range(raw["num_hidden_layers"]))}


def _gemma2(raw: Raw) -> Fields:
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


def _gpt2(raw: Raw) -> Fields:
    return {
        **_classic(raw, "activation_function", "gelu_new", "layer_norm_epsilon"),
        "intermediate_size": raw.get("n_inner") or 4 * raw["hidden_size"],
        "num_key_value_heads": raw["num_attention_heads"],
        "rope": None,
        "attention_scale": None if raw.get("scale_attn_weights", True) else 1.0,
        "is_scaled_by_depth": raw.get("scale_attn_by_inverse_layer_idx", False),
        "is_tied": raw.get("tie_word_embeddings", True),
    }


def _gpt_neox(raw: Raw) -> Fields:
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


_LLAMA_NAMES = {"embed.embed_tokens.": "embed_tokens.", "head.norm.": "norm.", "head.lm_head.": "lm_head."}
_QKV = tuple(f".self_attn.{name}_proj." for name in "qkv")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_llama, names=_LLAMA_NAMES),
    "mistral": Architecture(_mistral, names=_LLAMA_NAMES),
    "qwen2": Architecture(_qwen2, names=_LLAMA_NAMES),
    "qwen3": Architecture(_qwen3, names=_LLAMA_NAMES),
    "qwen2_moe": Architecture(_qwen2_moe, names=_LLAMA_NAMES),
    "qwen3_moe": Architecture(_qwen3_moe, names=_LLAMA_NAMES),
    "olmoe": Architecture(_olmoe, names=_LLAMA_NAMES),
    "olmo2": Architecture(
        _olmo2,
        names={
            **_LLAMA_NAMES,
            ".attention_out_norm.": ".post_attention_layernorm.",
            ".mlp_out_norm.": ".post_feedforward_layernorm.",
        },
    ),
    "gemma2": Architecture(
        _gemma2,
        names={
            **_LLAMA_NAMES,
            ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
            ".attention_out_norm.": ".post_attention_layernorm.",
            ".mlp_out_norm.": ".post_feedforward_layernorm.",
        },
    ),
    "phi3": Architecture(
        _phi3,
        names=_LLAMA_NAMES,
        fused={
            **dict.fromkeys(_QKV, (".self_attn.qkv_proj.", "rows")),
            **dict.fromkeys((".mlp.gate_proj.", ".mlp.up_proj."), (".mlp.gate_up_proj.", "rows")),
        },
    ),
    "gpt2": Architecture(
        _gpt2,
        prefix="transformer.",
        names={
            "embed.embed_tokens.": "wte.",
            "embed.embed_positions.": "wpe.",
            "head.norm.": "ln_f.",
            "head.lm_head.": "lm_head.",
            "layers.": "h.",
            ".input_layernorm.": ".ln_1.",
            ".post_attention_layernorm.": ".ln_2.",
            ".self_attn.o_proj.": ".attn.c_proj.",
            ".mlp.up_proj.": ".mlp.c_fc.",
            ".mlp.down_proj.": ".mlp.c_proj.",
        },
        fused=dict.fromkeys(_QKV, (".attn.c_attn.", "rows")),
        ignored=(".attn.bias", ".attn.masked_bias"),
        is_transposed=True,
        sizes={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
    ),
    "gpt_neox": Architecture(
        _gpt_neox,
        prefix="gpt_neox.",
        names={
            "embed.embed_tokens.": "embed_in.",
            "head.norm.": "final_layer_norm.",
            "head.lm_head.": "embed_out.",
            ".self_attn.o_proj.": ".attention.dense.",
            ".mlp.up_proj.": ".mlp.dense_h_to_4h.",
            ".mlp.down_proj.": ".mlp.dense_4h_to_h.",
        },
        fused=dict.fromkeys(_QKV, (".attention.query_key_value.", "heads")),
        ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    ),
}
