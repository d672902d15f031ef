"""The few array operations a chain of parts needs beyond indexing, for numpy; torch has its own beside its loader."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from service.backends.protocol import Array, Ints


class Arrays(Protocol):
    """Where a runtime keeps its arrays, and how they come in and go out."""

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Zeros in the precision of keys and values."""
        ...

    def take_in(self, array: Array) -> Any:
        """A host array as one of the runtime's."""
        ...

    def give_out(self, array: Any) -> Array:
        """One of the runtime's arrays as a host array."""
        ...

    def take(self, array: Any, places: Ints, into: Any) -> None:
        """Copy `array[places]` along the first axis into an array of that shape."""
        ...

    def join(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        """Arrays one after the other along an axis."""
        ...


class HostArrays:
    """Numpy arrays, for runtimes that compute on them."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape, np.float32)

    def take_in(self, array: Array) -> Array:
        return array

    def give_out(self, array: Array) -> Array:
        return array

    def take(self, array: Array, places: Ints, into: Array) -> None:
        array.take(places, axis=0, out=into, mode="clip")  # "raise" would copy once more

    def join(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        return np.concatenate(arrays, axis)
