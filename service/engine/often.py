"""Which chains are asked for so often that one graph of each is worth making. Knows no runtime."""

import logging
from concurrent.futures import ThreadPoolExecutor

from models.chain import Chain
from service.backends.fused import FusedChains
from service.backends.protocol import Graph

_log = logging.getLogger("fathom.engine")
# Passes along a chain from which on it has a graph: making one takes as long as some hundred passes save.
_OFTEN = 100
# Chains that are counted; searches ask for many, each once.
_MOST_COUNTED = 1024


class OftenAsked:
    """Has the graphs of chains made beside the passes, which go on layer by layer until then."""

    def __init__(self, fused: FusedChains[Graph]) -> None:
        self._fused = fused
        self._counts: dict[Chain, int] = {}
        self._ordered: set[Chain] = set()  # being made, or refused
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="fathom-fuse")

    def graph(self, chains: tuple[Chain, ...]) -> Graph | None:
        """The graph for a batch whose rows all take one chain, if it is made. Called once a pass: it counts them."""
        chain = chains[0]
        if chains.count(chain) < len(chains):
            return None
        graph = self._fused.get(chain.layers)
        if graph is None and chain not in self._ordered:
            self._count(chain)
        return graph

    def close(self) -> None:
        """Make no more graphs; blocks until none is being made."""
        self._maker.shutdown(cancel_futures=True)

    def _count(self, chain: Chain) -> None:
        count = self._counts.pop(chain, 0) + 1
        if count == _OFTEN:
            self._ordered.add(chain)
            self._maker.submit(self._fuse, chain)
            return
        if len(self._counts) == _MOST_COUNTED:
            self._counts.clear()
        self._counts[chain] = count

    def _fuse(self, chain: Chain) -> None:
        try:
            self._fused.add(chain.layers)
            self._ordered.remove(chain)
        except Exception:
            _log.exception("chain %s stays layer by layer", chain)
