"""Ranks for tests that need no network: threads of one process, whose sums are made in the order of ranks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
