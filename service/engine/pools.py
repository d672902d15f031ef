"""The pages of all layers: one pool of them, or several of which each is for some layers. Knows no sequence."""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence

from service.backends.pools import Pool
from service.engine.pages import Pages


class Pools:
    """Hands out pages by the layers whose visits they are for; without `pools` every page is for every layer."""

    def __init__(self, num_pages: int, pools: Sequence[Pool] = ()) -> None:
        self.num_pages, self.pools = num_pages, tuple(pools)
        parts = [pool.pages for pool in pools] or [range(num_pages)]
        self._pages = [Pages(len(part), part.start) for part in parts]
        self._starts = [part.start for part in parts]
        self._of = {layer: place for place, pool in enumerate(pools) for layer in pool.layers}

    def anew(self) -> "Pools":
        """The same pools with nothing in them."""
        return Pools(self.num_pages, self.pools)

    @property
    def num_used(self) -> int:
        return sum(pages.num_used for pages in self._pages)

    @property
    def num_cached(self) -> int:
        return sum(pages.num_cached for pages in self._pages)

    def counts(self, layers: Iterable[int], each: Iterable[int]) -> list[int]:
        """What visits of these layers take of every pool, so many pages `each`."""
        counts = [0] * len(self._pages)
        for layer, count in zip(layers, each, strict=True):
            counts[self._of.get(layer, 0)] += count
        return counts

    def are_available(self, counts: Iterable[int]) -> bool:
        """Whether so many pages of every pool could be taken."""
        return all(count <= pages.num_available for count, pages in zip(counts, self._pages, strict=True))

    def lack(self, counts: Iterable[int]) -> tuple[int, int] | None:
        """Of the first pool that never has so many pages: how many are asked for, and how many it has."""
        asked = zip(counts, (pages.num_pages for pages in self._pages), strict=True)
        return next((one for one in asked if one[0] > one[1]), None)

    def take(self, layers: Sequence[int]) -> list[int] | None:
        """A page for a visit of each of these layers, in their order; None, and none taken, if some are not there."""
        if len(self._pages) == 1:
            return self._pages[0].take(len(layers))
        counts = self.counts(layers, [1] * len(layers))
        if not self.are_available(counts):
            return None
        taken = [iter(pages.take(count) or ()) for count, pages in zip(counts, self._pages, strict=True)]
        return [next(taken[self._of.get(layer, 0)]) for layer in layers]

    def find(self, key: Hashable) -> int | None:
        """As `Pages.find`."""
        return next((page for pages in self._pages if (page := pages.find(key)) is not None), None)

    def publish(self, page: int, key: Hashable) -> int:
        """As `Pages.publish`."""
        return self._that_has(page).publish(page, key)

    def give_back(self, held: Iterable[int]) -> None:
        """As `Pages.give_back`."""
        if len(self._pages) == 1:
            self._pages[0].give_back(held)
            return
        for page in held:
            self._that_has(page).give_back((page,))

    def _that_has(self, page: int) -> Pages:
        return self._pages[bisect_right(self._starts, page) - 1]
