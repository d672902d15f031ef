"""What a decoder-only language model computes: sizes, and which of the field's variants each block is.

The defaults are Llama's. How a checkpoint's config.json becomes one of these is in `models.lm.architectures`.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from models.lm.residual import Residual
from models.lm.rope import Rope, max_positions
from models.lm.wrapping import wrapped

Norm: TypeAlias = Literal["rms", "offset_rms", "layer"]
NormPlace: TypeAlias = Literal["before", "after", "both"]


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP: how many there are, how many a token visits, and who shares.

    `layers` are those that have it; `has_normal_weights` makes the weights of the chosen sum to one.
    """

    count: int
    per_token: int
    intermediate_size: int
    layers: tuple[int, ...]
    has_normal_weights: bool = False
    shared_size: int | None = None


@dataclass(frozen=True, slots=True)
class LMConfig:
    """Sizes have Hugging Face's names.

    rope: None where positions are learned vectors. norm_place: before a block reads the stream, after it on what it
    adds, or both. qk_norm: on each head of queries and keys, or on all heads together. sliding_window: how many tokens
    back `windowed_layers` see, themselves included. softcap: bound of attention scores and of logits (Gemma 2).
    without_attention, without_mlp: layers that lost theirs. kept_weights: the part of each projection's weights that
    two thin matrices in its place have.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope: Rope | None = field(default_factory=Rope)
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    head_dim: int | None = None
    norm: Norm = "rms"
    norm_place: NormPlace = "before"
    is_parallel: bool = False
    activation: str = "silu"
    is_gated: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "all"] | None = None
    qkv_bound: float | None = None
    attention_scale: float | None = None
    is_scaled_by_depth: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    is_tied: bool = False
    sliding_window: int | None = None
    windowed_layers: tuple[int, ...] = ()
    experts: ExpertsConfig | None = None
    without_attention: tuple[int, ...] = ()
    without_mlp: tuple[int, ...] = ()
    kept_weights: float | None = None
    residual: Residual = field(default_factory=Residual)

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that is computed exactly."""
        configured = self.max_position_embeddings
        return configured if self.rope is None else max_positions(self.rope, configured)

    @property
    def rotary_size(self) -> int:
        """Numbers of a head that turn with the position."""
        return self.rope.size(self.head_size) if self.rope else 0

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The different reaches of attention, one mask each; None sees everything before."""
        if not self.windowed_layers:
            return (None,)
        is_everywhere = len(self.windowed_layers) == self.num_hidden_layers
        return (self.sliding_window,) if is_everywhere else (None, self.sliding_window)

    def mask_of(self, layer: int) -> int:
        """Which of the masks a layer sees through."""
        return len(self.windows) - 1 if layer in self.windowed_layers else 0

    def write(self, directory: Path) -> None:
        """Write a `config.json` that `transformers` loads as LlamaForCausalLM; only a plain Llama can be written.

        One that is not in the standard residual form is wrapped, so that `transformers` refuses it.
        """
        assert self.rope is not None
        assert self == replace(_plain(self), rope=Rope(self.rope.theta)), "only Llama's own variant has this file"
        raw = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope.theta,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "head_dim": self.head_size,
            "hidden_act": self.activation,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "dtype": "float32",
        }
        said = wrapped({**raw, "residual": self.residual.said()})
        (directory / "config.json").write_text(json.dumps(said, indent=2) + "\n")


def _plain(config: LMConfig) -> LMConfig:
    """The Llama of the same sizes."""
    return LMConfig(
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.max_position_embeddings,
        config.norm_eps,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        head_dim=config.head_dim,
        activation=config.activation,
        residual=config.residual,
    )
