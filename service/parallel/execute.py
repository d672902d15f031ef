"""Does programs on a backend, carries and all. The same on every rank; decides nothing, and knows no socket."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from models.errors import BackendError, FathomError
from service.backends.protocol import Array, Backend, Carry, Ints, Past, Rows
from service.parallel.program import Op, Reading

# Numbers of an output that are looked at to see whether ranks agree.
_MAX_LOOKED_AT = 1 << 14


# An operation that was read: gives the size of what it made, or outputs.
Action: TypeAlias = Callable[[], int | dict[str, Array]]


@dataclass(slots=True)
class Outcome:
    """What became of one program.

    outputs: by name, of the last operation that has any. trace: what was done, operation by operation, with the sizes
    of what came out; equal on all ranks. error: the first that was raised; what followed it was left out.
    """

    outputs: dict[str, Array] = field(default_factory=dict)
    trace: list[int] = field(default_factory=list)
    error: Exception | None = None


class Interpreter:
    """A backend and the carries that programs made on it. `probe` has all ranks meet once."""

    def __init__(self, backend: Backend, names: Sequence[str], probe: Callable[[], int]) -> None:
        self._backend, self._names, self._probe = backend, names, probe
        self._carries: dict[int, Carry] = {}
        self._actions: dict[Op, Callable[[Reading], Action]] = {
            Op.EMBED: self._embed,
            Op.LAYER: self._layer,
            Op.SELECT: self._select,
            Op.MERGE: self._merge,
            Op.JOIN: self._join,
            Op.FREE: self._free,
            Op.HEAD: self._head,
            Op.STREAM: self._stream,
            Op.PROBE: self._meet,
        }

    @property
    def num_carries(self) -> int:
        """Carries that are kept."""
        return len(self._carries)

    def run(self, body: bytes | bytearray) -> Outcome:
        """Do everything a program says; after what a backend raises, alike on all ranks, free carries and no more."""
        outcome, reading = Outcome(), Reading(body)
        while (op := reading.op()) is not None:
            action = self._actions[op](reading)
            if outcome.error and op is not Op.FREE:
                continue
            try:
                result = action()
            except Exception as error:
                outcome.error = error if isinstance(error, FathomError) else BackendError(f"{op.name}: {error!r}")
                result = -1
            if isinstance(result, dict):
                outcome.outputs = result
                result = sum(array.size for array in result.values())
            outcome.trace += (op, result)
        return Outcome(trace=outcome.trace, error=outcome.error) if outcome.error else outcome

    def _embed(self, reading: Reading) -> Action:
        made = reading.number()
        inputs = {self._names[reading.number()]: _there(reading.array()) for _ in range(reading.number())}
        rows = self._rows(reading)
        return lambda: self._keep(made, self._backend.embed(inputs, rows()))

    def _layer(self, reading: Reading) -> Action:
        made, carry, index = reading.number(), reading.number(), reading.number()
        rows = self._rows(reading)
        return lambda: self._keep(made, self._backend.layer(index, self._find(carry), rows()))

    def _select(self, reading: Reading) -> Action:
        made, carry, rows = reading.number(), reading.number(), reading.selection()
        return lambda: self._keep(made, self._backend.select(self._find(carry), rows))

    def _merge(self, reading: Reading) -> Action:
        carry, part, rows = reading.number(), reading.number(), reading.selection()
        return lambda: self._keep(carry, self._backend.merge(self._find(carry), rows, self._find(part)))

    def _join(self, reading: Reading) -> Action:
        made, parts = reading.number(), reading.numbers()
        return lambda: self._keep(made, self._backend.join([self._find(part) for part in parts]))

    def _free(self, reading: Reading) -> Action:
        return partial(self._forget, reading.numbers())

    def _head(self, reading: Reading) -> Action:
        carry, tokens = reading.number(), reading.array()
        return lambda: self._backend.head(self._find(carry), tokens)

    def _stream(self, reading: Reading) -> Action:
        carry = reading.number()
        return lambda: {"stream": self._backend.stream(self._find(carry))}

    def _meet(self, reading: Reading) -> Action:
        return self._probe

    def _rows(self, reading: Reading) -> Callable[[], Rows | None]:
        starts: Ints | None = reading.array()
        if starts is None:
            return lambda: None
        lengths, pages, keep = _there(reading.array()), reading.array(), bool(reading.number())
        past = [(reading.number(), reading.number()) for _ in range(reading.number())]
        return lambda: Rows(
            starts, lengths, pages, tuple(Past(self._find(carry), length) for carry, length in past), keep
        )

    def _forget(self, numbers: Sequence[int]) -> int:
        for number in numbers:
            self._carries.pop(number, None)  # what an error left out was never made
        return len(numbers)

    def _keep(self, number: int, carry: Carry) -> int:
        self._carries[number] = carry
        return self._backend.num_bytes(carry)

    def _find(self, number: int) -> Carry:
        if number not in self._carries:
            raise LookupError(f"carry {number} was not made: what makes it failed")
        return self._carries[number]


def look(outputs: dict[str, Array]) -> tuple[float, float]:
    """Sum and sum of magnitudes of some numbers of all outputs: of ranks that agree, the same up to rounding."""
    total = size = 0.0
    for array in outputs.values():
        some = array.reshape(-1)[:: array.size // _MAX_LOOKED_AT + 1].astype(np.float64)
        some = np.nan_to_num(some, nan=-3e38)
        total, size = total + float(some.sum()), size + float(np.abs(some).sum())
    return total, size


def agree(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two looks at outputs may be of the same ones, for numbers of few bits on unlike processors too."""
    return math.isclose(a[0], b[0], abs_tol=1e-2 * max(a[1], b[1]))


def _there(array: Array | None) -> Array:
    if array is None:
        raise ValueError("an array is missing in a program")
    return array
