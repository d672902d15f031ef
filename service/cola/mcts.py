"""Monte Carlo tree search over chains, ask and tell. Knows no model, no answer and no clock.

The nodes form a graph, not a tree: one node per chain, however many edit orders lead to it. A chain's depth is the
number of edits on the way it was first reached; edges lead only to greater depth, so the graph has no cycles
although a skip can undo a repeat.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from models.chain import Chain
from models.errors import ChainError, InputError
from service.cola.ledger import Found, Ledger
from service.cola.node import Node, Statistics, TreeNode, outline, statistics_of
from service.cola.space import Space

Walk: TypeAlias = Literal["tree", "released"]
# k = ceil(w * visits^0.5) children: progressive widening with the usual exponent.
_WIDENING_EXPONENT = 0.5


@dataclass(frozen=True, slots=True)
class MctsConfig:
    """The constants of the search. Raises InputError if one is out of range.

    exploration: c, 0 or more; the paper does not give it, its authors' code uses sqrt(2).
    length_penalty: lambda, 0 or more, per full chain length. random_child: probability in 0..1.
    widening: w above 0, or None to treat all edits of a chain as its children at once, as the paper does.
    prior: weight, 0 or more, of the block influence that a chain retains; above 0, skips of weak layers also come
    first. walk: how the tree is descended; "released" as in `ReleasedSearch`, which has neither widening nor prior.
    """

    exploration: float = 0.4
    length_penalty: float = 0.2
    random_child: float = 0.1
    widening: float | None = 8.0
    prior: float = 0.0
    walk: Walk = "tree"

    def __post_init__(self) -> None:
        for name in ("exploration", "length_penalty", "prior"):
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; use a finite number, 0 or more")
        if not 0 <= self.random_child <= 1:
            raise InputError(f"random_child is {self.random_child}; use a probability from 0 to 1")
        if self.widening is not None and not (math.isfinite(self.widening) and self.widening > 0):
            raise InputError(f"widening is {self.widening}; use a finite number above 0, or none for all children")
        if self.walk == "released" and (self.widening is not None or self.prior):
            raise InputError("walk 'released' opens all children and has no prior; set widening to null and prior to 0")


def upper_bound(
    reward_sum: float, visit_count: int, simulations: int, relative_length: float, config: MctsConfig
) -> float:
    """UCB(P) = Q/v + c * sqrt(ln V / v) - lambda * |P|/D: arXiv 2507.07996, section 3.

    `reward_sum` is Q, `visit_count` v (1 or more), `simulations` V (all so far), `relative_length` |P|/D.
    """
    exploration = config.exploration * math.sqrt(math.log(simulations) / visit_count)
    return reward_sum / visit_count + exploration - config.length_penalty * relative_length


class Search:
    """Proposes chains, learns from their rewards; the full chain comes first and none comes twice.

    The same seed and the same rewards in the same order give the same proposals. Not thread-safe.
    """

    def __init__(self, num_layers: int, space: Space, config: MctsConfig, seed: int) -> None:
        self._num_layers = num_layers
        self._space = space
        self._config = config
        self._rng = random.Random(seed)
        self._influence: Sequence[float] = ()
        self._nodes: dict[Chain, Node] = {}
        self._root = self._create(Chain.full(num_layers), depth=0)
        self._pending: dict[Chain, list[Node]] = {}
        self._ledger = Ledger()

    def inform(self, influence: Sequence[float]) -> None:
        """Tell the block influence of each layer, 0 or more [num_layers], before the second proposal.

        It counts where the configuration gives the prior a weight: arXiv 2403.03853, 1 - cos(in, out).
        """
        if self._config.prior and sum(influence) > 0:
            self._influence = influence

    def propose(self, count: int) -> list[Chain]:
        """Up to `count` chains to try next; fewer, or none, once every chain of the space was proposed."""
        chains: list[Chain] = []
        while len(chains) < count and (path := self._descend()):
            # Virtual loss: until its reward is known, a proposal counts as a visit that brought nothing.
            for node in path:
                node.visit_count += 1
            path[-1].is_proposed = True
            self._pending[path[-1].chain] = path
            chains.append(path[-1].chain)
        return chains

    def observe(self, chain: Chain, reward: float) -> None:
        """Tell the reward of a proposed chain, once. Raises ChainError for others, InputError if it is not finite."""
        if chain not in self._pending:
            raise ChainError(f"chain '{chain}' awaits no reward; observe each chain that was proposed, once")
        self._ledger.write(chain, reward)
        path = self._pending.pop(chain)
        for node in path:
            node.reward_sum += reward
        self._credited(path)

    def reject(self, chain: Chain) -> None:
        """Forget the reward of an observed chain that did not hold: it is neither best nor on the front any more."""
        self._ledger.strike(chain)

    def revise(self, rewards: Mapping[Chain, float]) -> None:
        """Replace the rewards of observed chains; what the tree learned from them stays."""
        self._ledger.revise(rewards)

    def best(self) -> Found:
        """Highest reward, then shortest, then first observed; there is none before the first reward."""
        front = self._ledger.front()
        assert front, "observe a reward before asking for the best chain"
        return front[0]

    def top(self, count: int) -> list[Found]:
        """The `count` best chains in the order of `best`."""
        return self._ledger.top(count)

    def pareto(self) -> list[Found]:
        """The exact front over (reward, length) of all observed chains, highest reward first."""
        return self._ledger.front()

    def has_no_shorter(self) -> bool:
        """Whether every chain of the space that is shorter than the best was observed."""
        length = self.best().length
        return self._ledger.count_below(length) >= self._space.count_below(length)

    def statistics(self) -> Statistics:
        """Counts so far."""
        return statistics_of(self._nodes.values(), self._root, len(self._pending))

    def tree(self, max_nodes: int) -> list[TreeNode]:
        """The root, what is below it, and so on, at most `max_nodes`."""
        return outline(self._root, max_nodes)

    def _create(self, chain: Chain, depth: int) -> Node:
        node = Node(chain, depth, self._retained(chain))
        self._nodes[chain] = node
        return node

    def _retained(self, chain: Chain) -> float:
        """The share of all block influence that the layers of a chain hold, in 0..1; 1 if it is not known."""
        if not self._influence:
            return 1.0
        return sum(self._influence[layer] for layer in set(chain.layers)) / sum(self._influence)

    def _credited(self, path: Sequence[Node]) -> None:
        """Hook: the reward of the path's last chain came in."""

    def _descend(self) -> list[Node]:
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

    def _widen(self, node: Node) -> Node | None:
        """A new child while there are fewer than the width, by chance, or when all others are exhausted.

        An unvisited child within the width has an infinite upper bound, so it goes before any visited one. Chains
        that another node reached first become children, too, but with the visits they already have.
        """
        if node.unexplored is None:
            node.unexplored = self._space.draw(node.chain, self._rng, self._influence)
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

    def _width(self, node: Node) -> float:
        widening = self._config.widening
        return math.inf if widening is None else math.ceil(widening * node.visit_count**_WIDENING_EXPONENT)

    def _best_child(self, node: Node) -> Node | None:
        return max((c for c in node.children.values() if not c.is_exhausted), key=self._bound, default=None)

    def _bound(self, node: Node) -> float:
        length = len(node.chain) / self._num_layers
        bound = upper_bound(node.reward_sum, node.visit_count, self._root.visit_count, length, self._config)
        return bound + self._config.prior * node.retained / (1 + node.visit_count)


def _has_open_child(node: Node) -> bool:
    return any(not child.is_exhausted for child in node.children.values())
