"""What was read up to some point, as an object that stands for exactly that. Standard library only; knows no page."""

from collections.abc import Hashable
from weakref import WeakValueDictionary


class History:
    """An item and all before it. Two are the same history only if they are the same object."""

    __slots__ = ("__weakref__", "before", "item")

    def __init__(self, before: "History | None", item: Hashable) -> None:
        self.before, self.item = before, item


class Histories:
    """Gives equal histories one object for as long as somebody holds it.

    A history is found by its last item and the object of what came before, so no hash of a long text is ever trusted.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[History | None, Hashable], History] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def after(self, before: History | None, item: Hashable) -> History:
        """The history that `item` makes of `before`."""
        found = self._known.get((before, item))
        if found is None:
            found = self._known[(before, item)] = History(before, item)
        return found
