"""The nodes of a search graph, and pictures of it: counts, and an outline for drawing. Knows no rule of descent."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from models.chain import Chain


@dataclass(slots=True, eq=False)
class Node:
    """One chain. depth: edits on the way it was first reached.

    retained: share of all block influence, 0..1. bound: the score of the last visit, where the walk goes by that.
    """

    chain: Chain
    depth: int
    retained: float = 1.0
    unexplored: Iterator[Chain] | None = None
    children: dict[Chain, "Node"] = field(default_factory=dict)
    visit_count: int = 0
    reward_sum: float = 0.0
    bound: float = -math.inf
    is_proposed: bool = False
    is_exhausted: bool = False


@dataclass(frozen=True, slots=True)
class Statistics:
    """The shape of a search so far. Pending chains await their reward; depth is in edits from the full chain.

    Each edge beyond `num_proposed - 1` is a chain that one more edit order leads to.
    """

    num_proposed: int
    num_pending: int
    num_edges: int
    num_root_children: int
    max_depth: int


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One visited chain of an outline. mean_reward: of the visits that went through it; children: places in it."""

    chain: Chain
    depth: int
    visit_count: int
    mean_reward: float
    children: tuple[int, ...]


def statistics_of(nodes: Iterable[Node], root: Node, num_pending: int) -> Statistics:
    """Counts over all nodes of a graph."""
    every = list(nodes)
    return Statistics(
        num_proposed=sum(node.is_proposed for node in every),
        num_pending=num_pending,
        num_edges=sum(len(node.children) for node in every),
        num_root_children=len(root.children),
        max_depth=max(node.depth for node in every),
    )


def outline(root: Node, max_nodes: int) -> list[TreeNode]:
    """The graph level by level from the root, the most visited first, until there are `max_nodes`; no node twice."""
    places, level = {root.chain: 0}, [root][:max_nodes]
    drawn: list[Node] = []
    while level:
        drawn += level
        below = {child.chain: child for node in level for child in node.children.values() if child.visit_count}
        new = [child for chain, child in below.items() if chain not in places]
        level = sorted(new, key=lambda node: -node.visit_count)[: max_nodes - len(drawn)]
        places.update({node.chain: len(drawn) + place for place, node in enumerate(level)})
    return [_told(node, places) for node in drawn]


def _told(node: Node, places: dict[Chain, int]) -> TreeNode:
    children = tuple(places[chain] for chain in node.children if chain in places)
    mean_reward = node.reward_sum / max(node.visit_count, 1)
    return TreeNode(node.chain, node.depth, node.visit_count, mean_reward, children)
