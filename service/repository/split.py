"""How requests that name no version are divided: smooth weighted round robin. Standard library only."""

from collections.abc import Container, Mapping


class Split:
    """Takes turns between versions in proportion to their weights, evenly spread and the same every time."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self.weights = {version: weight for version, weight in weights.items() if weight}
        self._credit = dict.fromkeys(self.weights, 0)

    def heaviest(self, usable: Container[str]) -> str | None:
        """The version with the largest share of those that are `usable`; takes no turn."""
        weights = {version: weight for version, weight in self.weights.items() if version in usable}
        return max(weights, key=weights.__getitem__, default=None)

    def next(self, usable: Container[str]) -> str | None:
        """The version whose turn it is among those that are `usable`; None if none of them is."""
        weights = {version: weight for version, weight in self.weights.items() if version in usable}
        if not weights:
            return None
        for version, weight in weights.items():
            self._credit[version] += weight
        chosen = max(weights, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(weights.values())
        return chosen
