"""The chains of one model that were fused into one graph each. Knows no runtime: a loader brings what makes them."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeAlias, TypeVar

Layers: TypeAlias = tuple[int, ...]
_Graph = TypeVar("_Graph")


class FusedChains(Generic[_Graph]):
    """At most `most` graphs; a further one takes the place of the one that was not run for longest."""

    def __init__(self, make: Callable[[Layers], _Graph], most: int) -> None:
        self._make, self._most = make, most
        self._graphs: OrderedDict[Layers, _Graph] = OrderedDict()
        self._lock = Lock()  # graphs are made on other threads than they are run on

    def add(self, layers: Layers) -> None:
        """Make the graph of a chain. Raises BackendError if the runtime refuses it."""
        graph = self._make(layers)
        with self._lock:
            self._graphs[layers] = graph
            if len(self._graphs) > self._most:
                self._graphs.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._graphs.clear()

    def get(self, layers: Layers) -> _Graph | None:
        """The graph of a chain, if there is one."""
        with self._lock:
            if layers in self._graphs:
                self._graphs.move_to_end(layers)
            return self._graphs.get(layers)
