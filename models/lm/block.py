"""One decoder layer: attention and an MLP, each added to the residual stream. Knows one visit of one batch."""

import torch
from torch import Tensor, nn

from models.lm.attention import Attention, NoAttention
from models.lm.config import LMConfig
from models.lm.mlp import make_mlp
from models.lm.norm import make_norm


class Layer(nn.Module):
    """A standard residual layer: attention, then MLP, each added to the stream it read; or both read the same stream.

    `post_attention_layernorm` is Llama's name of the norm before the MLP.
    """

    def __init__(self, config: LMConfig, layer: int = 0) -> None:
        super().__init__()
        before, after = config.norm_place != "after", config.norm_place != "before"
        attends, thinks = layer not in config.without_attention, layer not in config.without_mlp
        self.is_parallel = config.is_parallel
        self.input_layernorm = _norm(config, before and attends)
        self.self_attn = Attention(config, layer) if attends else NoAttention(config)
        self.attention_out_norm = _norm(config, after and attends)
        self.post_attention_layernorm = _norm(config, before and thinks)
        self.mlp = make_mlp(config, layer)
        self.mlp_out_norm = _norm(config, after and thinks)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One visit.

        hidden [B, S, D]; cos, sin [B, S, R]; mask [B, M, S, P + S] bool, true where a token may look, one for each
        reach of attention; past_key, past_value [B, G, P, K]. Returns hidden [B, S, D] and the new tokens' keys and
        values [B, G, S, K].
        """
        mixed, key, value = self.attend(hidden, cos, sin, mask, past_key, past_value)
        attended = hidden + mixed
        return attended + self.think(hidden if self.is_parallel else attended), key, value

    def attend(self, stream: Tensor, *seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention adds to the stream [B, S, D] that it reads, and keys and values."""
        mixed, key, value = self.self_attn(self.input_layernorm(stream), *seen)
        return self.attention_out_norm(mixed), key, value

    def think(self, stream: Tensor) -> Tensor:
        """What the MLP adds to the stream [B, S, D] that it reads."""
        added: Tensor = self.mlp_out_norm(self.mlp(self.post_attention_layernorm(stream)))
        return added


class ParallelLayer(Layer):
    """Attention and MLP side by side behind one norm (PaLM, arXiv 2204.02311, section 2)."""

    def __init__(self, config: LMConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.post_attention_layernorm = nn.Identity()

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`."""
        normed = self.input_layernorm(hidden)
        mixed, key, value = self.self_attn(normed, cos, sin, mask, past_key, past_value)
        return hidden + self.attention_out_norm(mixed) + self.mlp_out_norm(self.mlp(normed)), key, value


class PendingLayer(Layer):
    """A layer of a model with ladder layers: what the last MLP adds travels beside the stream that lacks it.

    hidden [B, S, 2 D] is both. In a ladder layer attention reads the stream without it, and the MLP reads the stream
    without this layer's attention (arXiv 2501.06589, section 3); in a standard layer nothing is missed.
    """

    def __init__(self, config: LMConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.is_ladder = config.residual.is_ladder(layer)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`, but hidden [B, S, 2 D]."""
        landed, pending = hidden.chunk(2, dim=-1)
        stream = landed + pending
        mixed, key, value = self.attend(landed if self.is_ladder else stream, cos, sin, mask, past_key, past_value)
        attended = stream + mixed
        added = self.think(stream if self.is_ladder else attended)
        return torch.cat((attended, added), dim=-1), key, value


def make_layer(config: LMConfig, layer: int) -> Layer:
    """One layer of the residual form that the model has."""
    if config.residual.has_pending:
        return PendingLayer(config, layer)
    return ParallelLayer(config, layer) if config.residual.form == "parallel" else Layer(config, layer)


def _norm(config: LMConfig, is_there: bool) -> nn.Module:
    return make_norm(config, config.hidden_size) if is_there else nn.Identity()
