"""Who is next: by priority, fairly between clients, first in first out of one client. Standard library only.

Between the clients of one priority it is start-time fair queueing (Goyal, Vin, Chen 1996), deficit round robin without
rounds: work begins where its client's last ended on a clock that counts what was served, and the earliest goes first.
So who asks for little is not delayed by who asks for much, and what is next can be seen without taking it.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeAlias, TypeVar

from service.engine.terms import NUM_PRIORITIES, Terms


class Costly(Protocol):
    """Something that can wait in line; `num_tokens` is what it costs its client."""

    @property
    def terms(self) -> Terms: ...
    @property
    def num_tokens(self) -> int: ...


_W = TypeVar("_W", bound=Costly)
# Where work begins on the clock of its level, and how many came before it.
_Place: TypeAlias = tuple[int, int]

# So much more urgent work may pass a level before one of its own goes first.
MAX_OVERTAKEN = 32
_MANY_CLIENTS = 1024


class Line(Generic[_W]):
    """Waiting work in the order in which it leaves. Iterating looks without taking; one client costs constant time."""

    def __init__(self) -> None:
        self._levels = tuple(_Level[_W]() for _ in range(NUM_PRIORITIES))
        self._num_works = 0

    def __len__(self) -> int:
        return self._num_works

    def __iter__(self) -> Iterator[_W]:
        """Everything that waits, the next first; the others as they follow unless a level is overtaken too often."""
        first = self._next_level()
        for level in (first, *(other for other in self._levels if other is not first)):
            if level is not None:
                yield from level

    def first(self) -> _W | None:
        """The next, which stays."""
        level = self._next_level() if self._num_works else None
        return None if level is None else level.first()

    def put(self, work: _W) -> None:
        """Let work in, behind what its client has here."""
        self._levels[work.terms.priority - 1].put(work)
        self._num_works += 1

    def take(self, work: _W) -> None:
        """Let work go that is served now, the next or another."""
        served = self._levels[work.terms.priority - 1]
        served.advance()
        served.remove(work)
        self._num_works -= 1
        served.num_overtaken = 0
        if self._num_works:
            for level in self._levels[work.terms.priority :]:
                if level.clients:
                    level.num_overtaken += 1

    def remove(self, work: _W) -> bool:
        """Forget work that nobody wants any more; says whether it was here."""
        was_here = self._levels[work.terms.priority - 1].remove(work)
        self._num_works -= was_here
        return was_here

    def _next_level(self) -> "_Level[_W] | None":
        most_urgent = None
        for level in self._levels:
            if level.clients:
                if level.num_overtaken >= MAX_OVERTAKEN:
                    return level
                if most_urgent is None:
                    most_urgent = level
        return most_urgent


class _Level(Generic[_W]):
    """The work of one priority. `clients` has no empty entry; `_heads` has one entry at least for each of them."""

    def __init__(self) -> None:
        self.clients: dict[str, OrderedDict[_W, _Place]] = {}
        self.num_overtaken = 0
        self._heads: list[tuple[int, int, str]] = []
        self._clock = self._num_came = 0
        self._ends: dict[str, int] = {}
        self._max_ends = _MANY_CLIENTS

    def __iter__(self) -> Iterator[_W]:
        if len(self.clients) == 1:
            return iter(next(iter(self.clients.values())))
        lines = [((place, work) for work, place in waiting.items()) for waiting in self.clients.values()]
        return (work for _, work in heapq.merge(*lines, key=lambda entry: entry[0]))

    def put(self, work: _W) -> None:
        client = work.terms.client
        begin = max(self._clock, self._ends.get(client, 0))
        place = (begin, self._num_came)
        self._num_came += 1
        self._note_end(client, begin + work.num_tokens)
        waiting = self.clients.get(client)
        if waiting is None:
            waiting = self.clients[client] = OrderedDict()
            heapq.heappush(self._heads, (*place, client))
        waiting[work] = place

    def first(self) -> _W:
        """The next; entries of `_heads` whose work is gone make way. There must be one."""
        while True:
            begin, came, client = self._heads[0]
            waiting = self.clients.get(client)
            if waiting is None:
                heapq.heappop(self._heads)
                continue
            work = next(iter(waiting))
            place = waiting[work]
            if place == (begin, came):
                return work
            heapq.heapreplace(self._heads, (*place, client))

    def advance(self) -> None:
        """Let the clock say where the next begins."""
        self.first()
        self._clock = max(self._clock, self._heads[0][0])

    def remove(self, work: _W) -> bool:
        client = work.terms.client
        waiting = self.clients.get(client)
        if waiting is None or waiting.pop(work, None) is None:
            return False
        if not waiting:
            del self.clients[client]
            if not self.clients:
                self._rest()
        return True

    def _note_end(self, client: str, end: int) -> None:
        """Remember where a client's work ends; of very many clients only those that wait owe anything."""
        self._ends[client] = end
        if len(self._ends) > self._max_ends:
            self._ends = {client: end for client, end in self._ends.items() if client in self.clients}
            self._max_ends = max(_MANY_CLIENTS, 2 * len(self._ends))

    def _rest(self) -> None:
        """Begin anew: with nobody here nobody can be treated unfairly."""
        self._heads.clear()
        self._ends.clear()
        self._clock = self.num_overtaken = 0
