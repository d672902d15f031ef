"""The descent of the search code that the authors released with PoLar, for reproduction. Same ask and tell.

Facts read in tianyi-lab/PoLar at c86d76e, `mcts_discovery/run_mcts.py`. A child that was never visited scores minus
infinity, so the greedy walk passes only visited ones, and whatever node it ends at gets all its children, of which one
at random is evaluated. Scores are those of the last visit, not of now. Hardly anything at depth 1 is ever evaluated.
"""

from collections.abc import Sequence

from service.cola.mcts import Search, upper_bound
from service.cola.node import Node


class ReleasedSearch(Search):
    """Proposes in the order of the released code; a simulation that this spends on a known chain is not spent here.

    The full chain, which the released code runs before it counts, is the first simulation here.
    """

    def _descend(self) -> list[Node]:
        if not self._root.is_proposed:
            return [self._root]
        while not self._root.is_exhausted:
            path = self._walk()
            self._expand(path)
            if not path[-1].is_proposed:
                return path
            self._close(path)
        return []

    def _walk(self) -> list[Node]:
        """From the root to a node without children, or one whose children are all exhausted."""
        path = [self._root]
        while open_children := [child for child in path[-1].children.values() if not child.is_exhausted]:
            if self._rng.random() < self._config.random_child:
                path.append(self._rng.choice(open_children))
            else:
                path.append(max(open_children, key=lambda node: node.bound))
        return path

    def _expand(self, path: list[Node]) -> None:
        """Give the last node every child that no other node has, and go on to one of them."""
        node = path[-1]
        if node.children:
            return
        new = [chain for chain in self._space.edits(node.chain) if chain not in self._nodes]
        node.children = {chain: self._create(chain, node.depth + 1) for chain in new}
        if new:
            path.append(node.children[self._rng.choice(sorted(new))])
        else:
            node.is_exhausted = True

    def _credited(self, path: Sequence[Node]) -> None:
        # Mean reward - 5 len / D + sqrt(2 ln(root visits + 1) / visits). The root's own first run is not counted.
        simulations = max(1, self._root.visit_count - 1)
        for node in path:
            length = len(node.chain) / self._num_layers
            node.bound = upper_bound(node.reward_sum, node.visit_count, simulations, length, self._config)
        self._close(path)

    def _close(self, path: Sequence[Node]) -> None:
        """Mark what has nothing open below it, from the leaf up."""
        for node in reversed(path):
            if node.children and all(child.is_exhausted for child in node.children.values()):
                node.is_exhausted = True
