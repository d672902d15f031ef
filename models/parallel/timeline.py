"""A pass as events on a virtual clock: modules on one stream of compute, all-reduces on one serial channel.

Takes the schedule of any form along any chain, of one group of rows or several, or the events that a real pass left.
Counted, not timed: nothing here is ever noisy. Standard library only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeAlias

from models.lm.residual import Residual
from models.parallel.latency import Costs, lands_before

Module: TypeAlias = Literal["attention", "mlp"]


@dataclass(frozen=True, slots=True)
class Run:
    """A module computes, for the rows of one group."""

    module: Module
    group: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """An all-reduce is launched; `number` counts them from 0."""

    number: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Compute stands still until an all-reduce is done."""

    number: int


Event: TypeAlias = Run | Launch | Wait


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds of a pass, and for how long compute stood still for each all-reduce, in the order of launches."""

    total_s: float
    exposed_s: tuple[float, ...]

    @property
    def num_exposed(self) -> int:
        return sum(seconds > 0 for seconds in self.exposed_s)


def simulate(events: Sequence[Event], *costs: Costs) -> Timeline:
    """Let a virtual clock go through the events; rows of group g have costs[g].

    The overhead is charged for each wait that something stands before since its launch, and hides nothing itself.
    """
    clock = free = overhead = 0.0
    done: list[float] = []
    exposed: list[float] = []
    before: Event | None = None
    for event in events:
        if isinstance(event, Run):
            cost = costs[event.group]
            clock += cost.attention_s if event.module == "attention" else cost.mlp_s
        elif isinstance(event, Launch):
            assert event.number == len(done), "launches are numbered in their order"
            free = max(clock, free) + costs[event.group].all_reduce_s
            done.append(free)
            exposed.append(0.0)
        else:
            overhead += 0.0 if before == Launch(event.number) else costs[0].overhead_s
            exposed[event.number] = max(0.0, done[event.number] - clock)
            clock += exposed[event.number]
        before = event
    return Timeline(clock + overhead + costs[0].rest_s, tuple(exposed))


def schedule(residual: Residual, executed: Sequence[int]) -> list[Event]:
    """The events of one pass of one group through the layers `executed`."""
    return interleaved(residual, [(0, layer) for layer in executed])


def interleaved(residual: Residual, calls: Sequence[tuple[int, int]]) -> list[Event]:
    """The events of a pass of several groups, each call a group and the layer it visits next.

    What a module left is waited for where its group reads it: other groups' modules between hide it in any form.
    """
    numbers = count()
    groups = {group: _Group(residual, group, numbers) for group, _ in calls}
    events = [event for group, layer in calls for event in groups[group].visit(layer)]
    return [*events, *(event for one in groups.values() for event in one.end())]


class _Group:
    """What rows of one chain have launched and not read."""

    def __init__(self, residual: Residual, group: int, numbers: Iterator[int]) -> None:
        self._residual, self._group, self._numbers = residual, group, numbers
        self._num_modules = 0
        self._layer: int | None = None
        self._attention: int | None = None  # numbers of all-reduces
        self._mlp: int | None = None

    def visit(self, layer: int) -> Iterator[Event]:
        """The next layer."""
        is_ladder = self._residual.is_ladder(layer)
        if not is_ladder or (self._layer is not None and lands_before(self._residual, self._layer, layer)):
            yield from self._land()
        self._layer = layer
        yield from self._landed("_attention")
        yield from self._ran("attention")
        if not is_ladder:
            yield from self._landed("_attention")
        yield from self._landed("_mlp")
        yield from self._ran("mlp")

    def end(self) -> Iterator[Event]:
        """Wait for all that was left; desync makes its streams equal if they are not."""
        if self._residual.form == "desync" and self._num_modules % self._residual.period:
            self._mlp = next(self._numbers)
            yield Launch(self._mlp, self._group)
        yield from self._land()

    def _ran(self, module: Module) -> Iterator[Event]:
        yield Run(module, self._group)
        self._num_modules += 1
        if self._is_added_up():
            number = next(self._numbers)
            yield Launch(number, self._group)
            setattr(self, f"_{module}", number)

    def _land(self) -> Iterator[Event]:
        yield from self._landed("_attention")
        yield from self._landed("_mlp")

    def _landed(self, which: Literal["_attention", "_mlp"]) -> Iterator[Event]:
        number = getattr(self, which)
        if number is not None:
            yield Wait(number)
            setattr(self, which, None)

    def _is_added_up(self) -> bool:
        """Whether the output of the last module is summed over the ranks at once."""
        form = self._residual.form
        if form == "desync":
            return self._num_modules % self._residual.period == 0
        return form in ("standard", "ladder") or (form == "parallel" and self._num_modules % 2 == 0)
