"""What a text encoder computes: sizes, which of the field's variants each block is, and what its head makes of it.

How a checkpoint's config.json becomes one of these is in `models.encoders.architectures`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from models.lm.rope import Rope

Task: TypeAlias = Literal["embed", "classify", "tokens", "fill-mask"]
Pooling: TypeAlias = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken"]
Scores: TypeAlias = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """A projection of a pooled vector; `folder` of the checkpoint holds its weights."""

    folder: str
    in_features: int
    out_features: int
    has_bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """From the last hidden states to what the model is asked for.

    pooling: states made one vector, side by side; none where every token has an output. transform: the activation
    behind a square projection, None without one. num_outputs: labels or vocabulary, 0 for none. scores: what turns
    outputs into probabilities. denses and is_normal are a sentence embedding's.
    """

    task: Task = "embed"
    pooling: tuple[Pooling, ...] = ()
    transform: str | None = None
    has_transform_bias: bool = True
    has_transform_norm: bool = False
    num_outputs: int = 0
    has_out_bias: bool = True
    is_tied: bool = False
    labels: tuple[str, ...] = ()
    scores: Scores = "softmax"
    denses: tuple[DenseConfig, ...] = ()
    is_normal: bool = False


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes have Hugging Face's names.

    max_length: tokens of the longest text that has positions. num_positions: learned vectors of them, 0 where positions
    turn. pad_token_id: where positions are counted, past this id, by the tokens that are another one (RoBERTa).
    norms_before: a block's norm reads the stream, and the first layer's attention has none; else it is on the sum.
    ropes, reaches: of each layer, where positions turn; a token sees those up to `reach` away, None sees all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_length: int
    head: HeadConfig = HeadConfig()
    num_positions: int = 0
    pad_token_id: int | None = None
    num_token_types: int = 0
    norm_eps: float = 1e-12
    activation: str = "gelu"
    norms_before: bool = False
    is_gated: bool = False
    has_attention_bias: bool = True
    has_mlp_bias: bool = True
    has_norm_bias: bool = True
    ropes: tuple[Rope, ...] = ()
    reaches: tuple[int | None, ...] = ()

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def has_token_types(self) -> bool:
        """Whether texts of a pair are told apart; a single type is the same for all tokens."""
        return self.num_token_types > 1

    @property
    def longest_reach(self) -> int:
        """Of the layers that do not see everything; 0 where all do."""
        return max((reach for reach in self.reaches if reach is not None), default=0)
