"""What chains of one sample have in common: their prefixes. Standard library only; knows no tensor.

The carry after a prefix depends on nothing that follows, so every prefix is run once however many chains begin with it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Prefix: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One prefix of one sample of a batch; running it means one visit after its parent's."""

    sample: int
    prefix: Prefix

    @property
    def parent(self) -> "Node":
        return Node(self.sample, self.prefix[:-1])


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """One layer call: the nodes whose last visit it makes."""

    layer: int
    nodes: tuple[Node, ...]


def plan_prefixes(leaves: Sequence[Node], is_known: Callable[[Node], bool]) -> list[NodeGroup]:
    """Layer calls that make every leaf known: each missing prefix once, after its parent, lowest layer first."""
    missing = _missing(leaves, is_known)
    children: dict[Node, list[Node]] = {}
    waiting: dict[int, list[Node]] = {}
    for node in missing:
        if node.parent in missing:
            children.setdefault(node.parent, []).append(node)
        else:
            waiting.setdefault(node.prefix[-1], []).append(node)
    groups = []
    while waiting:
        layer = min(waiting)
        nodes = waiting.pop(layer)
        groups.append(NodeGroup(layer, tuple(nodes)))
        for child in (child for node in nodes for child in children.get(node, ())):
            waiting.setdefault(child.prefix[-1], []).append(child)
    return groups


def _missing(leaves: Sequence[Node], is_known: Callable[[Node], bool]) -> dict[Node, None]:
    missing: dict[Node, None] = {}
    for leaf in leaves:
        node = leaf
        while node.prefix and node not in missing and not is_known(node):
            missing[node] = None
            node = node.parent
    return missing


class PrefixCache:
    """Carries by stage and prefix; past `max_bytes` the least recently used are forgotten first, empty prefixes never.

    A sample that is read in stages has one cache, so that the bound holds for all of them together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._carries: OrderedDict[tuple[int, Prefix], tuple[Any, int]] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, key: tuple[int, Prefix]) -> bool:
        return key in self._carries

    def __len__(self) -> int:
        return len(self._carries)

    def get(self, key: tuple[int, Prefix]) -> Any:
        """The carry of a stage and prefix that is here."""
        self._carries.move_to_end(key)
        return self._carries[key][0]

    def put(self, key: tuple[int, Prefix], carry: Any, num_bytes: int) -> None:
        """Remember a carry; others, or this one itself, may have to go."""
        self._carries[key] = (carry, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes and (oldest := next(filter(_is_forgettable, self._carries), None)):
            self.num_bytes -= self._carries.pop(oldest)[1]

    def clear(self) -> None:
        """Forget everything."""
        self._carries.clear()
        self.num_bytes = 0


def _is_forgettable(key: tuple[int, Prefix]) -> bool:
    return bool(key[1])
