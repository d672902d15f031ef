"""The probe at start, against modules and a network whose times are known."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from models.lm.config import LMConfig
from models.parallel.group import Handle
from models.parallel.latency import Costs, gains
from models.parallel.model import ShardedModel
from models.parallel.probe import probe

ATTENTION_S, MLP_S = 2.0, 3.0


@dataclass
class Clock:
    """Time that passes where a test says so."""

    now: float = 0.0

    def __post_init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(self.now)

    def take(self) -> list[float]:
        marks, self.marks = self.marks, []
        return [later - sooner for sooner, later in pairwise(marks)]


@dataclass
class Slow:
    """A group of one whose all-reduces take `seconds`, and `late` more of whoever waits after computing meanwhile."""

    clock: Clock
    seconds: float
    late: float
    rank: int = 0
    size: int = 1
    num_bytes: list[int] = field(default_factory=list)

    def all_reduce(self, tensor: Tensor) -> Handle:
        self.num_bytes.append(tensor.nbytes)
        return _Due(self, self.clock.now)

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor

    def leave(self) -> None: ...


@dataclass
class _Due:
    group: Slow
    launched: float

    def wait(self) -> None:
        clock = self.group.clock
        is_late = clock.now > self.launched
        clock.now = max(clock.now, self.launched + self.group.seconds) + (self.group.late if is_late else 0.0)


@pytest.mark.parametrize("seconds", [1.0, 10.0])
def test_each_part_is_told_from_the_others(seconds: float) -> None:
    clock = Clock()
    group = Slow(clock, seconds, late=0.25)
    shard = ShardedModel(LMConfig(19, 16, 24, 3, 4, 2, 64), group)

    def takes(some: float) -> object:
        return lambda *_: setattr(clock, "now", clock.now + some)

    for layer in shard.layers:
        layer.self_attn.register_forward_pre_hook(takes(ATTENTION_S))
        layer.mlp.register_forward_pre_hook(takes(MLP_S))
    stopwatch: Any = clock
    found = probe(shard, num_rows=5, num_past=7, stopwatch=stopwatch)
    assert found.costs == Costs(ATTENTION_S, MLP_S, seconds, overhead_s=0.25)
    assert set(group.num_bytes) == {found.num_bytes} == {5 * 16 * 4}
    assert "all-reduce of 320 bytes" in found.text
    assert f"ladder {gains(3, found.costs)['ladder']:.2f}x" in found.text


def test_real_time_is_measured_too() -> None:
    torch.manual_seed(0)
    group = Slow(Clock(), 0.0, 0.0)
    found = probe(ShardedModel(LMConfig(19, 16, 24, 3, 4, 2, 64), group))
    assert min(found.costs.attention_s, found.costs.mlp_s) > 0
