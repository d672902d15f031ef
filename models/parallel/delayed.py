"""A group whose all-reduces take as long as those of another network: what overlaps can be measured on one machine."""

import time

from torch import Tensor

from models.parallel.group import Group, Handle
from models.parallel.latency import Link


class Delayed:
    """One serial channel in front of a real group: an all-reduce is done when the real one is, and not before its time.

    Its time is the link's, from when it was launched or the channel was free; `link` may change while nothing is in
    flight. Gathers pass at the group's own speed.
    """

    def __init__(self, group: Group, link: Link) -> None:
        self._group, self.link = group, link
        self._free = 0.0

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def all_reduce(self, tensor: Tensor) -> Handle:
        self._free = max(time.monotonic(), self._free) + self.link.seconds(tensor.nbytes)
        return _Delayed(self._group.all_reduce(tensor), self._free)

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return self._group.all_gather(tensor, dim)

    def leave(self) -> None:
        self._group.leave()


class _Delayed:
    """A launched all-reduce and the moment it is done."""

    def __init__(self, handle: Handle, done: float) -> None:
        self._handle, self._done = handle, done

    def wait(self) -> None:
        self._handle.wait()
        time.sleep(max(0.0, self._done - time.monotonic()))
