"""What a pass over a group's ranks is made of, measured at start: modules, all-reduces, and what hiding one costs.

Every rank probes at the same moment, as every rank takes part in each all-reduce.
"""

from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from models.parallel.latency import Costs, gains
from models.parallel.layer import ShardedLayer
from models.parallel.model import ShardedModel
from models.parallel.passes import Stopwatch

# Passes before the one that counts: they find the weights in the files, and what is made once.
_NUM_WARM = 1


@dataclass(frozen=True, slots=True)
class Probed:
    """Medians over the layers of a pass of `num_rows` rows of one token each, behind `num_past` others.

    costs: with an all-reduce of `num_bytes`; its overhead is how much longer an all-reduce and an MLP that hides it
    take than the longer of the two.
    """

    num_layers: int
    num_rows: int
    num_past: int
    num_bytes: int
    costs: Costs

    @property
    def text(self) -> str:
        """One line for the log, and what each residual form would gain over the standard one, of the layers' time."""
        costs = self.costs
        faster = ", ".join(f"{form} {gain:.2f}x" for form, gain in gains(self.num_layers, costs).items() if gain != 1.0)
        return (
            f"a step of {self.num_rows} rows behind {self.num_past} tokens: attention {_us(costs.attention_s)}, "
            f"MLP {_us(costs.mlp_s)}, all-reduce of {self.num_bytes} bytes {_us(costs.all_reduce_s)}, "
            f"hiding one costs {_us(costs.overhead_s)}; predicted of standard's speed: {faster}"
        )


def probe(shard: ShardedModel, num_rows: int = 1, num_past: int = 128, stopwatch: Stopwatch | None = None) -> Probed:
    """Walk through all layers that are here, so that each finds its weights as cold as in a pass of its own."""
    device = shard.embed.embed_tokens.weight.device
    watch = stopwatch or Stopwatch("cuda" if device.type == "cuda" else "cpu")
    shared = _shared(shard, num_rows, num_past)
    spans: list[float] = []
    with torch.no_grad():
        for _ in range(_NUM_WARM + 1):
            watch.mark()
            for number in shard.part.layers:
                layer = shard.layers[number]
                assert isinstance(layer, ShardedLayer)
                _walk(layer, shared, watch)
            spans = watch.take()
    attention_s, mlp_s, all_reduce_s, both_s = (median(spans[part::4]) for part in range(4))
    costs = Costs(attention_s, mlp_s, all_reduce_s, max(both_s - max(mlp_s, all_reduce_s), 0.0))
    return Probed(len(shard.layers), num_rows, num_past, shared[0].nbytes, costs)


def _walk(layer: ShardedLayer, shared: tuple[Tensor, ...], watch: Stopwatch) -> None:
    """A layer's attention and its MLP, an all-reduce alone, and one under the MLP; a mark after each."""
    stream, *seen = shared
    layer.self_attn(layer.input_layernorm(stream), *seen)
    watch.mark()
    added = layer.mlp(layer.post_attention_layernorm(stream))
    watch.mark()
    layer.group.all_reduce(torch.zeros_like(added)).wait()
    watch.mark()
    handle = layer.group.all_reduce(torch.zeros_like(added))
    layer.mlp(layer.post_attention_layernorm(stream))
    handle.wait()
    watch.mark()


def _shared(shard: ShardedModel, num_rows: int, num_past: int) -> tuple[Tensor, ...]:
    """A stream [B, 1, D] of random numbers, and cos, sin, mask, past keys and values of a pass behind `num_past`."""
    local, weight = shard.local, shard.embed.embed_tokens.weight
    random = torch.Generator().manual_seed(0)
    stream = torch.randn(num_rows, 1, local.hidden_size, generator=random).to(weight)
    waves = stream.new_zeros(num_rows, 1, local.rotary_size)
    mask = torch.ones(num_rows, len(local.windows), 1, num_past + 1, dtype=torch.bool, device=weight.device)
    past = stream.new_zeros(num_rows, local.num_key_value_heads, num_past, local.head_size)
    return stream, waves, waves, mask, past, past


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"
