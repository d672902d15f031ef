"""One decoder layer: attention and an MLP, each added to the residual stream. Knows one visit of one batch.

A layer for each residual form; what a visit hands the next is laid out as `Residual.width` says.
"""

import torch
from torch import Tensor, nn

from models.lm.attention import Attention, NoAttention
from models.lm.config import LMConfig
from models.lm.linear import part_over_ranks
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
        if self.is_parallel:
            return hidden + (mixed + self.think(hidden)), key, value
        attended = hidden + mixed
        return attended + self.think(attended), key, value

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
        self.is_parallel = True
        self.post_attention_layernorm = nn.Identity()

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`."""
        normed = self.input_layernorm(hidden)
        mixed, key, value = self.self_attn(normed, cos, sin, mask, past_key, past_value)
        return hidden + (self.attention_out_norm(mixed) + self.mlp_out_norm(self.mlp(normed))), key, value


class PendingLayer(Layer):
    """A layer of a model with ladder layers: what the last MLP adds travels beside the stream that lacks it.

    hidden [B, S, 2 D] is both. In a ladder layer attention reads the stream without it, and the MLP reads the stream
    without this layer's attention (arXiv 2501.06589, section 3); in a standard layer nothing is missed. A skipped layer
    changes nothing, unless the rule is "slot": then hidden [B, S, 2 D + 1] says which layer came before this one, and
    behind a gap nothing is missing.
    """

    def __init__(self, config: LMConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.index, self.size = layer, config.hidden_size
        self.is_ladder, self.has_slots = config.residual.is_ladder(layer), config.residual.has_slots

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`, but hidden [B, S, 2 D] or [B, S, 2 D + 1]."""
        landed, pending, *last = torch.split(hidden, [self.size, self.size, *([1] if self.has_slots else [])], dim=-1)
        stream = landed + pending
        missing = self._missing(landed, stream, last) if self.is_ladder else stream
        mixed, key, value = self.attend(missing, cos, sin, mask, past_key, past_value)
        attended = stream + mixed
        added = self.think(stream if self.is_ladder else attended)
        told = [torch.full_like(one, self.index) for one in last]
        return torch.cat((attended, added, *told), dim=-1), key, value

    def _missing(self, landed: Tensor, stream: Tensor, last: list[Tensor]) -> Tensor:
        """What attention reads of a ladder layer: the stream without the last MLP's output, where it has not landed."""
        return torch.where(last[0] + 1 < self.index, stream, landed) if self.has_slots else landed


class DesyncLayer(Layer):
    """A layer whose ranks, P of them, read and write streams of their own, all in one process: the reference.

    A rank adds its own part of what a module computes to its stream; where the streams are made equal, all become
    their mean plus every rank's part. It happens at the MLP of every `period / 2`-th visit, whichever layer that is,
    and after the last one: hidden [B, S, (P + 1) D + 1] has it done beside the streams, for whoever comes last.
    """

    def __init__(self, config: LMConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.num_ranks, self.visits_apart = config.residual.num_ranks, config.residual.period // 2
        self.size = config.hidden_size
        part_over_ranks(self.self_attn, self.num_ranks)
        part_over_ranks(self.mlp, self.num_ranks)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `Layer.forward`, but hidden [B, S, (P + 1) D + 1]."""
        flat, _, apart = torch.split(hidden, [self.num_ranks * self.size, self.size, 1], dim=-1)
        streams = flat.view(*flat.shape[:2], self.num_ranks, self.size)  # [B, S, P, D]
        mixed, key, value = self.attend(streams, cos, sin, mask, past_key, past_value)
        attended = streams + mixed
        added = self.think(attended)
        equal = attended.mean(dim=2) + added.sum(dim=2)  # [B, S, D]
        is_equal = apart + 1 == self.visits_apart  # [B, S, 1]
        after = torch.where(is_equal.unsqueeze(-1), equal.unsqueeze(2), attended + added)
        apart = torch.where(is_equal, torch.zeros_like(apart), apart + 1)
        return torch.cat((after.flatten(2), equal, apart), dim=-1), key, value


def make_layer(config: LMConfig, layer: int) -> Layer:
    """One layer of the model's residual form. In one process there is nothing that the form upper-bound leaves out."""
    if config.residual.has_pending:
        return PendingLayer(config, layer)
    if config.residual.has_streams:
        return DesyncLayer(config, layer)
    return ParallelLayer(config, layer) if config.residual.form == "parallel" else Layer(config, layer)


def _norm(config: LMConfig, is_there: bool) -> nn.Module:
    return make_norm(config, config.hidden_size) if is_there else nn.Identity()
