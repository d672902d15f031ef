"""How chains use the layers: what is skipped, what is repeated, how alike chains are. Knows no sample and no search."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import log
from statistics import fmean

from models.chain import Chain


def layer_rates(chains: Sequence[str], num_layers: int) -> dict[str, list[float]]:
    """By layer, the share of chains that never visit it and of those that visit it more than once."""
    visits = [Counter(Chain.parse(chain).layers) for chain in chains]
    layers = range(num_layers)
    return {
        "skip": [fmean(one[layer] == 0 for one in visits) for layer in layers] if visits else [],
        "repeat": [fmean(one[layer] > 1 for one in visits) for layer in layers] if visits else [],
    }


def usage(chains: Sequence[str]) -> dict[str, float | int | None]:
    """Counts and means over the chains.

    entropy: of the layer of a visit, in nats; the full chain of D layers has ln D, less means that some layers take
    more than their share. concentration: the largest such share. overlap: visits that two chains have in common, of
    all visits of either, mean over all pairs; one if all are equal. most_common: share of the commonest chain.
    """
    if not chains:
        return {"n": 0, "distinct": 0, "most_common": None, "entropy": None, "concentration": None, "overlap": None}
    visits = [Counter(Chain.parse(chain).layers) for chain in chains]
    total: Counter[int] = sum(visits, Counter())
    shares = [count / total.total() for count in total.values()]
    pairs = [(first & second).total() / (first | second).total() for first, second in combinations(visits, 2)]
    return {
        "n": len(chains),
        "distinct": len(set(chains)),
        "most_common": Counter(chains).most_common(1)[0][1] / len(chains),
        "entropy": -sum(share * log(share) for share in shares),
        "concentration": max(shares),
        "overlap": fmean(pairs) if pairs else None,
    }
