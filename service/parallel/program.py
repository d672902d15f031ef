"""What a backend is to do, as numbers: recorded where the scheduler is, sent as one message, done alike on every rank.

A carry is a number. Knows no socket, and no backend.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

import numpy as np

from models.artifact import Manifest
from service.backends.protocol import Array, Ints, Selection

# No such array, rows or tokens.
NOTHING = -1
_SLICE, _PLACES = 0, 1
# Whole numbers travel in the narrowest of these that holds all of a program's.
_WIDTHS = tuple(map(np.dtype, ("<i1", "<i2", "<i4", "<i8")))
_RANGES = tuple((np.iinfo(width).min, np.iinfo(width).max) for width in _WIDTHS)
_INDEX = np.dtype(np.int64)
# Other arrays travel as they are; by place here. The first stands for whole numbers.
_DTYPES = tuple(map(np.dtype, ("<i8", "<f4", "<f8", "<f2", "?", "<i4", "u1")))
_HEAD_BYTES = 5


class Op(IntEnum):
    """What can be done; the numbers behind each are in `service.parallel.execute`."""

    EMBED = 0
    LAYER = 1
    SELECT = 2
    MERGE = 3
    JOIN = 4
    FREE = 5
    HEAD = 6
    STREAM = 7
    PROBE = 8


class Program:
    """Numbers and arrays in the order in which they are to be read. An array that comes twice is sent once."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._arrays: list[Array] = []
        self._places: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, *numbers: int) -> None:
        """Append numbers; the first of an operation says which one it is."""
        self._numbers.extend(numbers)

    def place(self, array: Array | None) -> int:
        """The number that stands for an array. Nobody changes the array until the program is encoded."""
        if array is None:
            return NOTHING
        place = self._places.get(id(array))
        if place is None:
            place = self._places[id(array)] = len(self._arrays)
            self._arrays.append(array)
        return place

    def add_selection(self, rows: Selection, num_rows: int) -> None:
        """Append which of `num_rows` rows are meant."""
        if isinstance(rows, slice):
            self.add(_SLICE, *rows.indices(num_rows))
        else:
            self.add(_PLACES, self.place(rows))

    def encode(self) -> bytes:
        """The program as one message body."""
        kinds = [_DTYPES.index(array.dtype) for array in self._arrays]
        shapes = [(kind, array.ndim, *array.shape) for kind, array in zip(kinds, self._arrays, strict=True)]
        told = [number for shape in shapes for number in shape]
        numbers = [len(self._numbers), len(self._arrays), *self._numbers, *told]
        whole = [array.ravel() for kind, array in zip(kinds, self._arrays, strict=True) if not kind]
        packed = np.concatenate([np.asarray(numbers, _INDEX), *whole])
        width = _narrowest(int(packed.min()), int(packed.max()))
        other = [array.tobytes() for kind, array in zip(kinds, self._arrays, strict=True) if kind]
        head = bytes((width,)) + len(packed).to_bytes(4, "little")
        return b"".join((head, packed.astype(_WIDTHS[width]).tobytes(), *other))


class Reading:
    """A program on the other side, read from its beginning. Raises ValueError if it is none."""

    def __init__(self, body: bytes | bytearray) -> None:
        width, count = _WIDTHS[body[0]], int.from_bytes(body[1:_HEAD_BYTES], "little")
        packed = np.frombuffer(body, width, count, _HEAD_BYTES).astype(_INDEX)
        num_numbers, num_arrays = packed[:2].tolist()
        self._numbers: Iterator[int] = iter(packed[2 : 2 + num_numbers].tolist())
        self.arrays = _arrays(body, packed, 2 + num_numbers, num_arrays, _HEAD_BYTES + packed.size * width.itemsize)

    def op(self) -> Op | None:
        """The next operation; None at the end."""
        number = next(self._numbers, None)
        return None if number is None else Op(number)

    def number(self) -> int:
        """The next number of an operation."""
        return next(self._numbers)

    def numbers(self) -> list[int]:
        """A count, and so many numbers."""
        return [self.number() for _ in range(self.number())]

    def array(self) -> Array | None:
        """The array that the next number stands for: the same object whenever it is the same number."""
        place = self.number()
        return None if place == NOTHING else self.arrays[place]

    def selection(self) -> Selection:
        """Which rows are meant."""
        if self.number() == _PLACES:
            return self.arrays[self.number()]
        start, stop, step = (self.number() for _ in range(3))
        return slice(start, stop, step)


def input_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of what `embed` may take, on which both sides agree; in a program they are places here."""
    return tuple(dict.fromkeys((*(spec.name for spec in manifest.inputs), "token_ids", "token_types", "lengths")))


def named(inputs: Mapping[str, Array], names: Sequence[str]) -> list[tuple[int, Array]]:
    """Inputs with the places of their names."""
    return [(names.index(name), array) for name, array in inputs.items()]


def _narrowest(least: int, most: int) -> int:
    return next(place for place, (low, high) in enumerate(_RANGES) if low <= least and most <= high)


def _arrays(body: bytes | bytearray, packed: Ints, start: int, count: int, offset: int) -> list[Array]:
    """The arrays of a program: whole numbers behind the shapes in `packed`, the others in `body` from `offset` on."""
    shapes: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(count):
        kind, ndim = packed[start : start + 2].tolist()
        shapes.append((kind, tuple(packed[start + 2 : start + 2 + ndim].tolist())))
        start += 2 + ndim
    sizes = [int(np.prod(shape)) for _, shape in shapes]
    arrays: list[Array] = []
    for (kind, shape), size in zip(shapes, sizes, strict=True):
        if kind == 0:
            arrays.append(packed[start : start + size].reshape(shape))
            start += size
        else:
            # A copy: what comes out of a message can be neither written to nor, on some processors, read unaligned.
            arrays.append(np.frombuffer(body, _DTYPES[kind], size, offset).reshape(shape).copy())
            offset += size * _DTYPES[kind].itemsize
    return arrays
