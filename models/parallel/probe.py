"""What a pass over a group's ranks is made of, measured at start: modules, all-reduces, and what hiding one costs.

Every rank probes at the same moment, as every rank takes part in each all-reduce. The clock is the host's, so this is
for CPUs: of a GPU it would time the launching.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from models.parallel.layer import ShardedLayer
from models.parallel.model import ShardedModel

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Probed:
    """Medians over all layers, in seconds, of a pass of `num_rows` rows of one token each behind `num_past` others.

    all_reduce_s: one of `num_bytes` by itself. overhead_s: how much longer an all-reduce and an MLP that hides it take
    than the longer of the two.
    """

    num_rows: int
    num_past: int
    num_bytes: int
    attention_s: float
    mlp_s: float
    all_reduce_s: float
    overhead_s: float

    @property
    def text(self) -> str:
        """One line for the log."""
        return (
            f"a step of {self.num_rows} rows behind {self.num_past} tokens: attention {self.attention_s * 1e6:.0f} us, "
            f"MLP {self.mlp_s * 1e6:.0f} us, all-reduce of {self.num_bytes} bytes {self.all_reduce_s * 1e6:.0f} us, "
            f"hiding one costs {self.overhead_s * 1e6:.0f} us"
        )


def probe(
    shard: ShardedModel, num_rows: int = 1, num_past: int = 128, repeats: int = 3, clock: Clock = time.perf_counter
) -> Probed:
    """Walk through all layers `repeats` times, so that each finds its weights as cold as in a pass of its own."""
    shared = _shared(shard, num_rows, num_past)
    found: list[tuple[float, float, float, float]] = []
    with torch.no_grad():
        for _ in range(repeats):
            found += [_layer(shard, layer, shared, clock) for layer in range(len(shard.layers))]
    attention_s, mlp_s, all_reduce_s, both_s = (median(times) for times in zip(*found, strict=True))
    overhead_s = max(both_s - max(mlp_s, all_reduce_s), 0.0)
    return Probed(num_rows, num_past, shared[0].nbytes, attention_s, mlp_s, all_reduce_s, overhead_s)


def _layer(
    shard: ShardedModel, index: int, shared: tuple[Tensor, ...], clock: Clock
) -> tuple[float, float, float, float]:
    """Seconds of a layer's attention and MLP, of an all-reduce alone, and of one under the MLP."""
    layer, (stream, *seen) = shard.layers[index], shared
    assert isinstance(layer, ShardedLayer)
    moments = [clock()]
    layer.self_attn(layer.input_layernorm(stream), *seen)
    moments.append(clock())
    added = layer.mlp(layer.post_attention_layernorm(stream))
    moments.append(clock())
    shard.group.all_reduce(torch.zeros_like(added)).wait()
    moments.append(clock())
    handle = shard.group.all_reduce(torch.zeros_like(added))
    layer.mlp(layer.post_attention_layernorm(stream))
    handle.wait()
    moments.append(clock())
    attention_s, mlp_s, all_reduce_s, both_s = (later - sooner for sooner, later in pairwise(moments))
    return attention_s, mlp_s, all_reduce_s, both_s


def _shared(shard: ShardedModel, num_rows: int, num_past: int) -> tuple[Tensor, ...]:
    """A stream [B, 1, D] of random numbers, and cos, sin, mask, past keys and values of a pass behind `num_past`."""
    local = shard.local
    stream = torch.randn(num_rows, 1, local.hidden_size, generator=torch.Generator().manual_seed(0)).to(shard.dtype)
    waves = stream.new_zeros(num_rows, 1, local.rotary_size)
    mask = torch.ones(num_rows, len(local.windows), 1, num_past + 1, dtype=torch.bool)
    past = stream.new_zeros(num_rows, local.num_key_value_heads, num_past, local.head_size)
    return stream, waves, waves, mask, past, past
