"""The decoder architectures of Hugging Face checkpoints: how each names its tensors, and what is read of any of them.

One entry an architecture; what its config.json says is in `models.lm.said`. Whatever would change what is computed and
is not computed here is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from models.errors import ArtifactError
from models.lm import said
from models.lm.config import LMConfig
from models.lm.residual import read_residual
from models.lm.rope import Raw
from models.lm.said import Fields

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
        residual=read_residual(raw.get("residual"), named["num_hidden_layers"]),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        pad_token_id=raw.get("pad_token_id"),
        **fields,
        **_ours(raw.get("fathom", {})),
    )
    _check_heads(config)
    _check_form(config)
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


def _ours(raw: Raw) -> Fields:
    """What only our own passes write into a config.json."""
    without = {name: tuple(raw.get(name, ())) for name in ("without_attention", "without_mlp")}
    return {**without, "kept_weights": raw.get("kept_weights")}


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


def _check_form(config: LMConfig) -> None:
    """Raise ArtifactError where the model's blocks leave open what its residual form means."""
    residual = config.residual
    if config.is_parallel and residual.form not in ("standard", "upper-bound"):
        raise ArtifactError(
            f"residual form {residual.text} is not defined for blocks whose attention and MLP read the same stream; "
            "use a model that has them one after the other"
        )
    if not residual.has_streams:
        return
    parted = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
    }
    uneven = {name: size for name, size in parted.items() if size % residual.num_ranks}
    if uneven:
        raise ArtifactError(f"residual form {residual.text} parts a layer evenly, which {uneven} do not allow")
    strange = {
        "experts": config.experts is not None,
        "norms behind attention and MLP": config.norm_place != "before",
        "a norm over all heads": config.qk_norm == "all",
        "an activation normed over all neurons": config.activation == "poly_norm",
        "projections of low rank": config.kept_weights is not None,
    }
    if any(strange.values()):
        names = [name for name, is_there in strange.items() if is_there]
        raise ArtifactError(f"residual form {residual.text} is not defined for {', '.join(names)}; use another form")


_LLAMA_NAMES = {
    "embed.embed_tokens.": "embed_tokens.",
    "head.norm.": "norm.",
    "head.lm_head.": "lm_head.",
    ".mlp.act.": ".mlp.act_fn.",
}
_QKV = tuple(f".self_attn.{name}_proj." for name in "qkv")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(said.llama, names=_LLAMA_NAMES),
    "mistral": Architecture(said.mistral, names=_LLAMA_NAMES),
    "qwen2": Architecture(said.qwen2, names=_LLAMA_NAMES),
    "qwen3": Architecture(said.qwen3, names=_LLAMA_NAMES),
    "qwen2_moe": Architecture(said.qwen2_moe, names=_LLAMA_NAMES),
    "qwen3_moe": Architecture(said.qwen3_moe, names=_LLAMA_NAMES),
    "olmoe": Architecture(said.olmoe, names=_LLAMA_NAMES),
    "olmo2": Architecture(
        said.olmo2,
        names={
            **_LLAMA_NAMES,
            ".attention_out_norm.": ".post_attention_layernorm.",
            ".mlp_out_norm.": ".post_feedforward_layernorm.",
        },
    ),
    "gemma2": Architecture(
        said.gemma2,
        names={
            **_LLAMA_NAMES,
            ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
            ".attention_out_norm.": ".post_attention_layernorm.",
            ".mlp_out_norm.": ".post_feedforward_layernorm.",
        },
    ),
    "phi3": Architecture(
        said.phi3,
        names=_LLAMA_NAMES,
        fused={
            **dict.fromkeys(_QKV, (".self_attn.qkv_proj.", "rows")),
            **dict.fromkeys((".mlp.gate_proj.", ".mlp.up_proj."), (".mlp.gate_up_proj.", "rows")),
        },
    ),
    "gpt2": Architecture(
        said.gpt2,
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
        said.gpt_neox,
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
