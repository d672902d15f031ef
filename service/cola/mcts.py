"""Monte Carlo tree search over chains, ask and tell. Knows no model, no answer and no clock.

The nodes form a graph, not a tree: one node per chain, however many edit orders lead to it. A chain's depth is the
number of edits on the way it was first reached; edges lead only to greater depth, so the graph has no cycles
although a skip can undo a repeat.
"""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from models.chain import Chain
from models.errors import ChainError, InputError
from service.cola.space import Space

# k = ceil(w * visits^0.5) children: progressive widening with the usual exponent.
_WIDENING_EXPONENT = 0.5


@dataclass(frozen=True, slots=True)
class MctsConfig:
    """The constants of the search. Raises InputError if one is out of range.

    exploration: c, 0 or more; the paper does not give it, its authors' code uses sqrt(2).
    length_penalty: lambda, 0 or more, per full chain length. random_child: probability in 0..1.
    widening: w above 0, or None to treat all edits of a chain as its children at once, as the paper does.
    """

    exploration: float = math.sqrt(2)
    length_penalty: float = 5.0
    random_child: float = 0.1
    widening: float | None = 2.0

    def __post_init__(self) -> None:
        for name in ("exploration", "length_penalty"):
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; use a finite number, 0 or more")
        if not 0 <= self.random_child <= 1:
            raise InputError(f"random_child is {self.random_child}; use a probability from 0 to 1")
        if self.widening is not None and not (math.isfinite(self.widening) and self.widening > 0):
            raise InputError(f"widening is {self.widening}; use a finite number above 0, or none for all children")


@dataclass(frozen=True, slots=True)
class Found:
    """A chain and the reward it got."""

    chain: Chain
    reward: float

    @property
    def length(self) -> int:
        """In visits."""
        return len(self.chain)


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


@dataclass(slots=True, eq=False)
class _Node:
    chain: Chain
    depth: int
    unexplored: Iterator[Chain]
    children: dict[Chain, "_Node"] = field(default_factory=dict)
    visit_count: int = 0
    reward_sum: float = 0.0
    is_exhausted: bool = False


def upper_bound(
    reward_sum: float, visit_count: int, simulations: int, relative_length: float, config: MctsConfig
) -> float:
    """UCB(P) = Q/v + c * sqrt(ln V / v) - lambda * |P|/D: arXiv 2507.07996, section 3.

    `reward_sum` is Q, `visit_count` v (1 or more), `simulations` V (all so far), `relative_length` |P|/D.
    """
    exploration = config.exploration * math.sqrt(math.log(simulations) / visit_count)
    return reward_sum / visit_count + exploration - config.length_penalty * relative_length


def pareto_front(found: Iterable[Found]) -> list[Found]:
    """What nothing else beats in reward and length at once: highest reward first, then ever shorter.

    Of chains equal in both, the first given stays.
    """
    front: list[Found] = []
    for candidate in sorted(found, key=lambda one: (-one.reward, one.length)):
        if not front or candidate.length < front[-1].length:
            front.append(candidate)
    return front


class Search:
    """Proposes chains, learns from their rewards; the full chain comes first and none comes twice.

    The same seed and the same rewards in the same order give the same proposals. Not thread-safe.
    """

    def __init__(self, num_layers: int, space: Space, config: MctsConfig, seed: int) -> None:
        self._num_layers = num_layers
        self._space = space
        self._config = config
        self._rng = random.Random(seed)
        self._nodes: dict[Chain, _Node] = {}
        self._root = self._create(Chain.full(num_layers), depth=0)
        self._pending: dict[Chain, list[_Node]] = {}
        self._found: dict[Chain, Found] = {}
        self._front: list[Found] = []

    def propose(self, count: int) -> list[Chain]:
        """Up to `count` chains to try next; fewer, or none, once every chain of the space was proposed."""
        chains: list[Chain] = []
        while len(chains) < count and (path := self._descend()):
            # Virtual loss: until its reward is known, a proposal counts as a visit that brought nothing.
            for node in path:
                node.visit_count += 1
            self._pending[path[-1].chain] = path
            chains.append(path[-1].chain)
        return chains

    def observe(self, chain: Chain, reward: float) -> None:
        """Tell the reward of a proposed chain, once. Raises ChainError for others, InputError if it is not finite."""
        if chain not in self._pending:
            raise ChainError(f"chain '{chain}' awaits no reward; observe each chain that was proposed, once")
        if not math.isfinite(reward):
            raise InputError(f"the reward of chain '{chain}' is {reward}; rewards are finite numbers")
        for node in self._pending.pop(chain):
            node.reward_sum += reward
        self._found[chain] = Found(chain, reward)
        self._front = pareto_front([*self._front, self._found[chain]])

    def reject(self, chain: Chain) -> None:
        """Forget the reward of an observed chain that did not hold: it is neither best nor on the front any more."""
        del self._found[chain]
        self._front = pareto_front(self._found.values())

    def best(self) -> Found:
        """Highest reward, then shortest, then first observed; there is none before the first reward."""
        assert self._front, "observe a reward before asking for the best chain"
        return self._front[0]

    def pareto(self) -> list[Found]:
        """The exact front over (reward, length) of all observed chains, highest reward first."""
        return list(self._front)

    def statistics(self) -> Statistics:
        """Counts so far."""
        depth = max(node.depth for node in self._nodes.values())
        num_proposed = sum(node.visit_count > 0 for node in self._nodes.values())
        num_edges = sum(len(node.children) for node in self._nodes.values())
        return Statistics(num_proposed, len(self._pending), num_edges, len(self._root.children), depth)

    def _create(self, chain: Chain, depth: int) -> _Node:
        node = _Node(chain, depth, self._space.draw(chain, self._rng))
        self._nodes[chain] = node
        return node

    def _descend(self) -> list[_Node]:
        """The path from the root to a chain that was never proposed; empty when there is none."""
        if self._root.visit_count == 0:
            return [self._root]
        path = [] if self._root.is_exhausted else [self._root]
        while path:
            node = path[-1]
            if (new := self._widen(node)) is not None:
                return [*path, new]
            if (child := self._best_child(node)) is not None:
                path.append(child)
            else:
                node.is_exhausted = True
                path.pop()
        return []

    def _widen(self, node: _Node) -> _Node | None:
        """A new child while there are fewer than the width, by chance, or when all others are exhausted.

        An unvisited child within the width has an infinite upper bound, so it goes before any visited one. Chains
        that another node reached first become children, too, but with the visits they already have.
        """
        is_random = self._rng.random() < self._config.random_child
        while is_random or len(node.children) < self._width(node) or not _has_open_child(node):
            chain = next(node.unexplored, None)
            if chain is None:
                return None
            known = self._nodes.get(chain)
            if known is None:
                return node.children.setdefault(chain, self._create(chain, node.depth + 1))
            if known.depth > node.depth:
                node.children[chain] = known
        return None

    def _width(self, node: _Node) -> float:
        widening = self._config.widening
        return math.inf if widening is None else math.ceil(widening * node.visit_count**_WIDENING_EXPONENT)

    def _best_child(self, node: _Node) -> _Node | None:
        return max((c for c in node.children.values() if not c.is_exhausted), key=self._bound, default=None)

    def _bound(self, node: _Node) -> float:
        relative_length = len(node.chain) / self._num_layers
        return upper_bound(node.reward_sum, node.visit_count, self._root.visit_count, relative_length, self._config)


def _has_open_child(node: _Node) -> bool:
    return any(not child.is_exhausted for child in node.children.values())
