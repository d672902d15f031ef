"""A pass as events on a virtual clock: modules on one stream of compute, all-reduces on one serial channel.

Takes the schedule of any form along any chain, of one group of rows or several, or the events that a real pass left.
Counted, not timed: nothing here is ever noisy. Standard library only.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    left = Counter(group for group, _ in calls)
    groups = {group: _Group(residual, group, num_visits) for group, num_visits in left.items()}
    events: list[Event] = []
    for group, layer in calls:
        events.extend(groups[group].visit(layer, sum(isinstance(event, Launch) for event in events)))
    for one in groups.values():
        events.extend(one.land())
    return events


class _Group:
    """What rows of one chain have launched and not read."""

    def __init__(self, residual: Residual, group: int, num_visits: int) -> None:
        self._residual, self._group, self._num_visits = residual, group, num_visits
        self._visits = 0
        self._layer: int | None = None
        self._attention: int | None = None  # numbers of all-reduces
        self._mlp: int | None = None

    def visit(self, layer: int, number: int) -> Iterator[Event]:
        """One layer, whose first all-reduce gets `number`."""
        self._visits += 1
        is_ladder = self._residual.is_ladder(layer)
        if not is_ladder or (self._layer is not None and lands_before(self._residual, self._layer, layer)):
            yield from self.land()
        self._layer = layer
        yield from self._landed("_attention")
        yield Run("attention", self._group)
        if self._is_reduced(2 * self._visits - 1):
            yield Launch(number, self._group)
            self._attention, number = number, number + 1
        yield from () if is_ladder else self._landed("_attention")
        yield from self._landed("_mlp")
        yield Run("mlp", self._group)
        if self._is_reduced(2 * self._visits):
            yield Launch(number, self._group)
            self._mlp = number

    def land(self) -> Iterator[Event]:
        """Wait for all that was left."""
        yield from self._landed("_attention")
        yield from self._landed("_mlp")

    def _landed(self, which: Literal["_attention", "_mlp"]) -> Iterator[Event]:
        number = getattr(self, which)
        if number is not None:
            yield Wait(number)
            setattr(self, which, None)

    def _is_reduced(self, module: int) -> bool:
        """Whether the output of a module, counted from 1, is added up over the ranks."""
        form = self._residual.form
        if form == "desync":
            return module % self._residual.period == 0 or module == 2 * self._num_visits
        return form in ("standard", "ladder") or (form == "parallel" and module % 2 == 0)
