"""The layer calls of a batch of chains, as data. Standard library only; knows no tensor.

A plan is a common supersequence of the batch's chains. Finding the shortest is hard, so three cheap rules each make one
and the shortest wins; the published figures for mixed chains are in the benchmark.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from models.chain import Chain


@dataclass(frozen=True, slots=True)
class Group:
    """One layer call: rows [B'] that make it, and for each which visit of its own chain this is."""

    layer: int
    rows: tuple[int, ...]
    visits: tuple[int, ...]


Plan: TypeAlias = tuple[Group, ...]
# A batch keeps its composition for many steps; the plan of many rows on many chains takes tens of kilobytes.
_NUM_KEPT = 256
# The rows that wait for each layer, and each row's next visit -> the layer to call.
_Rule: TypeAlias = Callable[[dict[int, list[int]], Sequence[Chain], Sequence[int]], int]


def plan(chains: tuple[Chain, ...]) -> Plan:
    """The shortest plan the rules find: every row makes every visit of its chain exactly once, in order.

    Rows of equal chains go together, so that the work of finding it depends on the distinct chains alone.
    """
    rows: dict[Chain, list[int]] = {}
    for row, chain in enumerate(chains):
        rows.setdefault(chain, []).append(row)
    distinct = tuple(sorted(rows))
    return tuple(_spread(group, [rows[chain] for chain in distinct]) for group in _plan(distinct))


@lru_cache(maxsize=_NUM_KEPT)
def _plan(chains: tuple[Chain, ...]) -> Plan:
    """The plan of distinct chains, a row each, however many rows take them and in whatever order."""
    if len(chains) == 1:
        return tuple(Group(layer, (0,), (visit,)) for visit, layer in enumerate(chains[0].layers))
    return min((_follow(rule, chains) for rule in (_lowest_layer, _most_rows, _most_left)), key=len)


def _spread(group: Group, rows: Sequence[Sequence[int]]) -> Group:
    """A group of distinct chains as one of the rows that take them, in ascending order."""
    visits = {row: visit for one, visit in zip(group.rows, group.visits, strict=True) for row in rows[one]}
    places = tuple(sorted(visits))
    return Group(group.layer, places, tuple(visits[row] for row in places))


def _follow(rule: _Rule, chains: Sequence[Chain]) -> Plan:
    done = [0] * len(chains)
    groups = []
    while waiting := _waiting(chains, done):
        layer = rule(waiting, chains, done)
        rows = waiting[layer]
        groups.append(Group(layer, tuple(rows), tuple(done[row] for row in rows)))
        for row in rows:
            done[row] += 1
    return tuple(groups)


def _waiting(chains: Sequence[Chain], done: Sequence[int]) -> dict[int, list[int]]:
    waiting: dict[int, list[int]] = {}
    for row, chain in enumerate(chains):
        if done[row] < len(chain):
            waiting.setdefault(chain.layers[done[row]], []).append(row)
    return waiting


def _lowest_layer(waiting: dict[int, list[int]], chains: Sequence[Chain], done: Sequence[int]) -> int:
    return min(waiting)


def _most_rows(waiting: dict[int, list[int]], chains: Sequence[Chain], done: Sequence[int]) -> int:
    return min(waiting, key=lambda layer: (-len(waiting[layer]), layer))


def _most_left(waiting: dict[int, list[int]], chains: Sequence[Chain], done: Sequence[int]) -> int:
    return min(waiting, key=lambda layer: (-max(len(chains[row]) - done[row] for row in waiting[layer]), layer))
