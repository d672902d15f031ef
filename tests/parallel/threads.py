"""Ranks for tests that need no network: threads of one process, whose sums are made in the order of ranks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from queue import SimpleQueue
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.parallel.group import Group, Handle, Landed

T = TypeVar("T")
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Silent:
    """A place among ranks that nobody answers from: for what a rank does by itself."""

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> Handle:
        raise AssertionError("nothing is to be summed")

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        raise AssertionError("nothing is to be gathered")

    def leave(self) -> None: ...


@dataclass(frozen=True)
class Thread:
    """A rank that meets the others at a barrier."""

    rank: int
    size: int
    table: list[Any]
    barrier: Barrier

    def all_reduce(self, tensor: Tensor) -> Handle:
        tensor.copy_(torch.stack(self._meet(tensor)).sum(dim=0))
        return Landed()

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return torch.cat(self._meet(tensor), dim)

    def leave(self) -> None: ...

    def _meet(self, tensor: Tensor) -> list[Tensor]:
        self.table[self.rank] = tensor.clone()
        self.barrier.wait(TIMEOUT_S)
        found = list(self.table)
        self.barrier.wait(TIMEOUT_S)
        return found


def on_threads(size: int, work: Callable[[Group], T]) -> list[T]:
    """What `work(group)` returns on each rank."""
    barrier, table = Barrier(size), [None] * size

    def run(rank: int) -> T:
        try:
            return work(Thread(rank, size, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@dataclass
class Late:
    """What was summed up but has not arrived: NaN until somebody waits."""

    tensor: Tensor
    sum: Tensor

    def __post_init__(self) -> None:
        self.tensor.fill_(torch.nan)

    def wait(self) -> None:
        self.tensor.copy_(self.sum)


@dataclass(frozen=True)
class LateThread(Thread):
    """A rank whose sums nobody may read before they were waited for."""

    def all_reduce(self, tensor: Tensor) -> Handle:
        return Late(tensor, torch.stack(self._meet(tensor)).sum(dim=0))


@dataclass
class ThreadCrossing:
    """A way to the counterparts on other stages, which notes what is sent: the stage and the shape."""

    stage: int
    place: int
    ways: dict[tuple[int, int, int], "SimpleQueue[Tensor]"]
    sent: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def send(self, tensor: Tensor, stage: int) -> None:
        self.sent.append((stage, tuple(tensor.shape)))
        self.ways[self.stage, stage, self.place].put(tensor)

    def receive(self, tensor: Tensor, stage: int) -> None:
        sent = self.ways[stage, self.stage, self.place].get(timeout=TIMEOUT_S)
        assert (sent.shape, sent.dtype) == (tensor.shape, tensor.dtype)
        tensor.copy_(sent)


def on_stages(num_stages: int, size: int) -> list[tuple[LateThread, ThreadCrossing]]:
    """The places of the ranks of a pipeline whose stages have so many each."""
    ways = {way: SimpleQueue[Tensor]() for way in product(range(num_stages), range(num_stages), range(size))}
    places = []
    for stage in range(num_stages):
        barrier, table = Barrier(size), [None] * size
        places += [(LateThread(rank, size, table, barrier), ThreadCrossing(stage, rank, ways)) for rank in range(size)]
    return places
