"""The ranks that share a model, and what they say to each other. Knows no layer and no schedule.

A collective that others hide behind computation is launched here and waited for where its result is read: the caller
holds the handle, so both moments stand in the caller's code. Every rank calls the same collectives in the same order.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from models.errors import BackendError

# gloo runs as many collectives at once as a ladder has in flight.
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class Handle(Protocol):
    """A collective that was launched."""

    def wait(self) -> None:
        """Return when the tensor may be read; on a GPU when the current stream will wait for it. May be called twice.

        Raises BackendError if a rank left or hung: the group is of no use from then on.
        """
        ...


class Group(Protocol):
    """One rank's place among those that share a model."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, tensor: Tensor) -> Handle:
        """Launch the sum over all ranks, in place. Until the handle was waited for nobody reads or writes `tensor`."""
        ...

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        """The tensors of all ranks, of one shape, side by side along `dim` in the order of ranks. Blocks."""
        ...

    def leave(self) -> None:
        """Close the connections; other ranks that still wait for this one fail."""
        ...


class Landed:
    """The handle of what needs no waiting."""

    def wait(self) -> None:
        """Return at once."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A group of one: sums and gathers are what they were."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, tensor: Tensor) -> Handle:
        return Landed()

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor

    def leave(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class _Launched:
    """The handle of a collective of torch.distributed; holds the tensor as long as the network writes to it."""

    work: dist.Work
    tensor: Tensor
    rank: int

    def wait(self) -> None:
        try:
            self.work.wait()
        except RuntimeError as error:
            raise lost(self.rank, error) from error


class ProcessGroup:
    """A rank of torch.distributed: gloo between CPUs, NCCL between GPUs."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    @property
    def rank(self) -> int:
        return self._group.rank()

    @property
    def size(self) -> int:
        return self._group.size()

    def all_reduce(self, tensor: Tensor) -> Handle:
        try:
            work = dist.all_reduce(tensor, group=self._group, async_op=True)
        except RuntimeError as error:
            raise lost(self.rank, error) from error
        assert work is not None
        return _Launched(work, tensor, self.rank)

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        try:
            dist.all_gather(parts, tensor.contiguous(), group=self._group)
        except RuntimeError as error:
            raise lost(self.rank, error) from error
        return torch.cat(parts, dim)

    def leave(self) -> None:
        dist.destroy_process_group(self._group)


def join_group(rank: int, size: int, store: Store, timeout_s: float, device: str = "cpu") -> ProcessGroup:
    """Meet the other ranks at `store`, which all of them name alike; a store serves one group (PrefixStore for more).

    Raises BackendError if some do not come within `timeout_s`, which from then on bounds every collective as well.
    """
    try:
        dist.init_process_group(
            _BACKENDS[device], store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
        )
        dist.barrier()
    except RuntimeError as error:
        raise BackendError(
            f"rank {rank} did not meet all {size} ranks within {timeout_s} s: {error}; see whether all are started"
        ) from error
    assert dist.group.WORLD is not None
    return ProcessGroup(dist.group.WORLD)


def lost(rank: int, error: RuntimeError) -> BackendError:
    """What a rank says whose collective failed."""
    return BackendError(f"rank {rank} lost the others: {error}; the group has to be built anew")
