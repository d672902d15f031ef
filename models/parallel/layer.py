"""One rank's part of a decoder layer in every residual form: what is launched when, and what is waited for where."""

import numpy as np
from torch import Tensor, nn

from models.lm.block import Layer
from models.lm.config import LMConfig
from models.lm.residual import Residual
from models.parallel.attention import SpreadAttention
from models.parallel.group import Group, Handle, Landed
from models.parallel.latency import lands_before
from models.parallel.stream import Equal, Module, Output, Own, Stream, inverse


class ShardedLayer(Layer):
    """Attention over some heads, then some neurons of an MLP; what they add is summed over the ranks.

    A module waits for those sums that it reads, just before it reads them. In a standard layer these are all before
    it. In a ladder layer (arXiv 2501.06589, section 3) attention leaves the last MLP's on its way and the MLP leaves
    this layer's attention's: two are in flight, each under the module after it.
    """

    def __init__(self, whole: LMConfig, local: LMConfig, layer: int, group: Group) -> None:
        """whole: the model's configuration; local: that of this rank's heads."""
        super().__init__(local, layer)
        self.index, self.group, self.residual = layer, group, whole.residual
        self.is_ladder = whole.residual.is_ladder(layer)
        self.attends, self.thinks = layer not in whole.without_attention, layer not in whole.without_mlp
        if self.attends and whole.qk_norm == "all" and group.size > 1:
            self.self_attn = SpreadAttention(local, layer, group, whole.num_attention_heads, whole.num_key_value_heads)

    def forward(self, stream: Stream, *seen: Tensor) -> tuple[Stream, Tensor, Tensor]:  # type: ignore[override]
        """One visit.

        stream: rows [B, S, D]; seen: cos, sin, mask, past_key and past_value as in `Layer.forward`, of this rank's G
        heads of keys and values. Returns the stream and the new tokens' keys and values [B, G, S, K].
        """
        before = stream.landed
        stream = stream.land(self._attention_reads)
        mixed, key, value = self.self_attn(self.input_layernorm(stream.landed), *seen)  # [B, S, D], a partial sum
        if self.attends:
            handle = self.all_reduce(mixed)
            stream = stream.launched(Output(mixed, handle, self.attention_out_norm, "attention", self.index))
        stream = stream.land(self._mlp_reads)
        added = self.mlp(self.post_attention_layernorm(stream.landed))
        if self.thinks:
            handle = self.all_reduce(added)
            stream = stream.launched(Output(added, handle, self.mlp_out_norm, "mlp", self.index))
        return _apart(stream, before), key, value

    def all_reduce(self, partial: Tensor) -> Handle:
        """Launch the sum over the ranks; of the upper bound no rank waits for another."""
        return Landed() if self.residual.form == "upper-bound" else self.group.all_reduce(partial)

    def _attention_reads(self, output: Output) -> bool:
        return attention_reads(self.residual, self.index, output.module, output.layer)

    def _mlp_reads(self, output: Output) -> bool:
        return not self.is_ladder or output.module == "mlp"


class SideBySideLayer(ShardedLayer):
    """Attention and MLP read the same stream (PaLM, GPT-NeoX), so one sum takes what both add."""

    def __init__(self, whole: LMConfig, local: LMConfig, layer: int, group: Group) -> None:
        super().__init__(whole, local, layer, group)
        self.has_one_norm = whole.residual.form == "parallel"
        if self.has_one_norm:
            self.post_attention_layernorm = nn.Identity()

    def forward(self, stream: Stream, *seen: Tensor) -> tuple[Stream, Tensor, Tensor]:  # type: ignore[override]
        """Shapes as in `ShardedLayer.forward`."""
        before = stream.landed
        stream = stream.land()
        normed = self.input_layernorm(stream.landed)
        mixed, key, value = self.self_attn(normed, *seen)
        added = self.mlp(normed if self.has_one_norm else self.post_attention_layernorm(stream.landed))
        if isinstance(self.attention_out_norm, nn.Identity):
            both = mixed + added
            stream = stream.launched(Output(both, self.all_reduce(both), self.mlp_out_norm, "mlp", self.index))
        else:  # a norm of what one module adds needs that sum alone
            stream = stream.launched(
                Output(mixed, self.all_reduce(mixed), self.attention_out_norm, "attention", self.index)
            )
            stream = stream.launched(Output(added, self.all_reduce(added), self.mlp_out_norm, "mlp", self.index))
        return _apart(stream, before), key, value


class DesyncLayer(ShardedLayer):
    """Each rank adds its own part to a stream of its own; the MLP of every so many visits makes them all equal.

    Both are one all-reduce: of what the rank adds and its share of the mean. Rows count their own visits, so of a group
    of rows some may be made equal and others not. What no later visit makes equal, `Stream.whole` does.
    """

    def forward(self, stream: Stream, *seen: Tensor) -> tuple[Stream, Tensor, Tensor]:  # type: ignore[override]
        """Shapes as in `ShardedLayer.forward`."""
        apart = stream.apart() + 1
        before = stream.land().landed
        mixed, key, value = self.self_attn(self.input_layernorm(before), *seen)
        attended = before + mixed
        added = self.mlp(self.post_attention_layernorm(attended))
        after = Stream(attended)
        is_equal = apart == self.residual.period // 2
        if is_equal.any():
            rows = np.flatnonzero(is_equal)
            together = (added + attended / self.group.size)[rows]
            handle = self.group.all_reduce(together)
            after = after.launched(Equal(together, handle, nn.Identity(), "mlp", self.index), inverse(rows, len(apart)))
        if not is_equal.all():
            rows = np.flatnonzero(~is_equal)
            own = Own(added[rows], Landed(), nn.Identity(), "mlp", self.index, apart[rows])
            after = after.launched(own, inverse(rows, len(apart)))
        return after, key, value


def attention_reads(residual: Residual, layer: int, module: Module, before: int) -> bool:
    """Whether a layer's attention reads what a module of the layer visited `before` has added."""
    if not residual.is_ladder(layer) or module == "attention":
        return True
    return lands_before(residual, before, layer)


def num_pending(config: LMConfig, layer: int) -> int:
    """Outputs that a visit of a layer leaves on their way to each of its rows."""
    if config.residual.has_streams:
        return 1
    if _is_side_by_side(config):
        return 1 if config.norm_place == "before" or layer in config.without_attention else 2
    misses = config.residual.is_ladder(layer) and layer not in config.without_attention  # else its MLP has read it
    return misses + (layer not in config.without_mlp)


def make_layer(whole: LMConfig, local: LMConfig, layer: int, group: Group) -> ShardedLayer:
    """One rank's part of a layer, of the residual form that the model has."""
    if whole.residual.has_streams:
        return DesyncLayer(whole, local, layer, group)
    return (SideBySideLayer if _is_side_by_side(whole) else ShardedLayer)(whole, local, layer, group)


def _is_side_by_side(config: LMConfig) -> bool:
    return config.residual.form == "parallel" or (config.is_parallel and not config.residual.has_pending)


def _apart(stream: Stream, before: Tensor) -> Stream:
    """A visit's result in memory of its own: where nothing has landed it still is the stream that came in."""
    return stream.own() if stream.landed is before else stream
