"""One decoder layer: attention and an MLP, each added to the residual stream. Knows one visit of one batch."""

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
        mixed, key, value = self.self_attn(self.input_layernorm(hidden), cos, sin, mask, past_key, past_value)
        attended = hidden + self.attention_out_norm(mixed)
        read = hidden if self.is_parallel else attended
        return attended + self.mlp_out_norm(self.mlp(self.post_attention_layernorm(read))), key, value


def _norm(config: LMConfig, is_there: bool) -> nn.Module:
    return make_norm(config, config.hidden_size) if is_there else nn.Identity()
