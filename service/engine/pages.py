"""Who holds which page, and which pages can be found again by what they hold. Standard library only.

A page is a few tokens of one visit of one sequence, never of a layer; the memory behind it is the backend's.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable


class Pages:
    """Hands out page numbers, counts their holders, and keeps published pages until their room is needed.

    Every page is free (nothing in it), used (somebody holds it) or cached (published, held by nobody). Their numbers
    are from `first` on.
    """

    def __init__(self, num_pages: int, first: int = 0) -> None:
        self.num_pages = num_pages
        self._free = list(range(first + num_pages - 1, first - 1, -1))
        self._holders = dict.fromkeys(self._free, 0)
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._by_key: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_available

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that could be taken: free ones, and cached ones at the price of what they hold."""
        return len(self._free) + len(self._cached)

    def take(self, count: int) -> list[int] | None:
        """`count` pages for one holder, or None if fewer are available."""
        if count > self.num_available:
            return None
        while len(self._free) < count:
            self._forget_oldest()
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def find(self, key: Hashable) -> int | None:
        """The page published under an equal key, held once more; None if there is none."""
        page = self._by_key.get(key)
        if page is not None:
            self._holders[page] += 1
            self._cached.pop(page, None)
        return page

    def publish(self, page: int, key: Hashable) -> int:
        """Let others find a held page that will not be written again.

        Returns the page to hold from now on: where an equal one is known already that one, and `page` is given back.
        """
        known = self.find(key)
        if known is None:
            self._by_key[key], self._keys[page] = page, key
            return page
        self.give_back((page,))
        return known

    def give_back(self, pages: Iterable[int]) -> None:
        """Hold pages once less; of those that become cached the first given back is the first to go."""
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._keys:
                self._cached[page] = None
            else:
                self._free.append(page)

    def _forget_oldest(self) -> None:
        page, _ = self._cached.popitem(last=False)
        del self._by_key[self._keys.pop(page)]
        self._free.append(page)
