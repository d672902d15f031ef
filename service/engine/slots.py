"""Who owns which KV slot. A slot is one visit of one sequence, never a layer. Standard library only."""


class Slots:
    """Hands out slot numbers and takes them back; the memory behind them is the backend's."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots - 1, -1, -1))
        self.num_slots = num_slots

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def take(self, count: int) -> tuple[int, ...] | None:
        """`count` slots, or None if fewer are free."""
        if count > len(self._free):
            return None
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return tuple(taken)

    def give_back(self, slots: tuple[int, ...]) -> None:
        """Free slots for others."""
        self._free.extend(slots)
