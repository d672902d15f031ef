"""A group that tells what was launched and waited for: counters that cost nothing, or every event in its order."""

import time

from torch import Tensor

from models.parallel.group import Group, Handle
from models.parallel.timeline import Event, Launch, Module, Run, Wait


class Metered:
    """A group that counts. Counters only grow; all threads may read them.

    num_all_reduces, num_bytes: launched by this rank. waited_s: seconds its thread stood in `wait`. On a GPU, where a
    wait stops a stream and not the thread, that is not what was exposed.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.num_all_reduces = 0
        self.num_bytes = 0
        self.waited_s = 0.0

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def all_reduce(self, tensor: Tensor) -> Handle:
        handle = _Metered(self, self._group.all_reduce(tensor), self.num_all_reduces)
        self.num_all_reduces += 1
        self.num_bytes += tensor.nbytes
        return handle

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return self._group.all_gather(tensor, dim)

    def leave(self) -> None:
        self._group.leave()

    def landed(self, number: int, waited_s: float) -> None:
        """Note the wait for an all-reduce, counted from 0; once for each."""
        self.waited_s += waited_s


class Recorded(Metered):
    """A metered group that also keeps every event and the seconds each all-reduce was waited for, since `forget`."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.forget()

    def forget(self) -> None:
        """Begin anew; nothing may be in flight."""
        self._first = self.num_all_reduces
        self.events: list[Event] = []
        self.exposed_s: list[float] = []

    def ran(self, module: Module) -> None:
        """Note that a module computes: what watches modules calls this before they do."""
        self.events.append(Run(module))

    def all_reduce(self, tensor: Tensor) -> Handle:
        self.events.append(Launch(self.num_all_reduces - self._first))
        self.exposed_s.append(0.0)
        return super().all_reduce(tensor)

    def landed(self, number: int, waited_s: float) -> None:
        super().landed(number, waited_s)
        self.events.append(Wait(number - self._first))
        self.exposed_s[number - self._first] = waited_s


class _Metered:
    """A launched all-reduce whose first wait is told to the group."""

    def __init__(self, group: Metered, handle: Handle, number: int) -> None:
        self._group, self._handle, self._number = group, handle, number
        self._is_landed = False

    def wait(self) -> None:
        started = time.perf_counter()
        self._handle.wait()
        if not self._is_landed:
            self._is_landed = True
            self._group.landed(self._number, time.perf_counter() - started)
