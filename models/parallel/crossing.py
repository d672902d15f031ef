"""Between the stages of a pipeline: what the rank at one place of a stage says to the one at that place of another.

Every rank does the same operations in the same order, and takes part in each either as the one who sends or as the one
who receives. So nobody waits in a circle, whatever the order of the stages; on a group of its own, no message is taken
for another collective's.
"""

from collections import deque
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from models.errors import BackendError
from models.parallel.group import Alone, Group, ProcessGroup, lost

# Sends that may be under way; one more waits for the first of them, and so for a stage that lies behind.
_MAX_SENDING = 4


class Crossing(Protocol):
    """One rank's way to its counterparts."""

    @property
    def stage(self) -> int:
        """Where this rank is."""
        ...

    def send(self, tensor: Tensor, stage: int) -> None:
        """Launch. Nobody writes to `tensor` any more. Raises BackendError if a rank left or hung."""
        ...

    def receive(self, tensor: Tensor, stage: int) -> None:
        """Fill `tensor` with the next that the stage has sent, of its shape. Blocks. Raises BackendError alike."""
        ...


class ProcessCrossing:
    """Isend and irecv of torch.distributed among all ranks, of which consecutive ones make a stage."""

    def __init__(self, group: dist.ProcessGroup, num_stages: int) -> None:
        self._group, self._size = group, group.size() // num_stages
        self.stage, self._place = divmod(group.rank(), self._size)
        # With what is sent: the network reads it until somebody has waited.
        self._sending: deque[tuple[dist.Work, Tensor]] = deque()

    def send(self, tensor: Tensor, stage: int) -> None:
        try:
            while len(self._sending) >= _MAX_SENDING:
                self._sending.popleft()[0].wait()
            work = dist.isend(tensor, group=self._group, group_dst=self._rank(stage))
        except RuntimeError as error:
            raise self._lost(error) from error
        assert work is not None
        self._sending.append((work, tensor))

    def receive(self, tensor: Tensor, stage: int) -> None:
        try:
            work = dist.irecv(tensor, group=self._group, group_src=self._rank(stage))
            assert work is not None
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _rank(self, stage: int) -> int:
        return stage * self._size + self._place

    def _lost(self, error: RuntimeError) -> BackendError:
        return lost(self._group.rank(), error)


def divide(world: ProcessGroup, num_stages: int, timeout_s: float) -> tuple[Group, Crossing]:
    """Of all ranks that have met: those of this one's stage, and its way to the others. Every rank calls it.

    Raises BackendError if some do not within `timeout_s`, which bounds whatever is sent as well.
    """
    size, timeout = world.size // num_stages, timedelta(seconds=timeout_s)
    members = [range(stage * size, (stage + 1) * size) for stage in range(num_stages)]
    try:
        groups = [dist.new_group(list(ranks), timeout) for ranks in members if size > 1]
        crossing = ProcessCrossing(dist.new_group(timeout=timeout), num_stages)
    except RuntimeError as error:
        raise lost(world.rank, error) from error
    return (ProcessGroup(groups[crossing.stage]) if groups else Alone()), crossing
