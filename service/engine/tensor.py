"""A tensor model: rows in, rows out, each along its own chain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models import datatype
from models.artifact import TensorSpec
from models.chain import Chain
from models.errors import InputError
from service.backends.protocol import Array
from service.engine.engine import ChainValue, Engine, new_future
from service.engine.forward import overflow
from service.engine.work import Tensors, TensorWork, Timing

DTYPES = {name: np.dtype(dtype) for name, dtype in datatype.DTYPES.items()}
_MAX_DIMENSIONS = 32
# Kinds of numpy array that hold values of a datatype exactly enough: a float is never cut down to an integer.
_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}


@dataclass(frozen=True, slots=True)
class Inference:
    """Outputs by name, [B, ...] each, and the chain [B] of every row."""

    outputs: dict[str, Array]
    chains: tuple[Chain, ...]
    timing: Timing


class TensorEngine(Engine):
    """Runs rows of numbers."""

    async def infer(self, inputs: object, chain: ChainValue) -> Inference:
        """Outputs of every row. Raises InputError or ChainError, also if a chain's numbers overflow."""
        arrays = read_inputs(inputs, self.manifest.inputs)
        chains = self.affordable_chains(chain, len(next(iter(arrays.values()))))
        outputs, timing = await self.forward(arrays, chains)
        return Inference(outputs, chains, timing)

    async def forward(self, arrays: dict[str, Array], chains: tuple[Chain, ...]) -> tuple[dict[str, Array], Timing]:
        """Outputs by name, [B, ...] each, of inputs that `read_inputs` has checked, [B, ...] each.

        Raises ChainError if a chain's numbers overflow, LengthError or OverloadError if the queue has no room.
        """
        answers: list[Tensors] = await self.run(self._split(arrays, chains))
        outputs = {name: _joined([answer.outputs[name] for answer in answers]) for name in answers[0].outputs}
        if self.num_layers:
            _check_finite(outputs, chains)
        timing = answers[-1].timing
        if not timing.is_cached:
            self.metrics.observe_samples(chains, [1] * len(chains), self.num_layers, timing)
        return outputs, timing

    def _split(self, arrays: dict[str, Array], chains: tuple[Chain, ...]) -> list[TensorWork]:
        size = self.limits.batch.max_rows
        return [
            TensorWork(
                future=new_future(),
                inputs={name: array[start : start + size] for name, array in arrays.items()},
                chains=chains[start : start + size],
            )
            for start in range(0, len(chains), size)
        ]


def read_inputs(inputs: object, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Arrays by input name, from a list of rows (one input) or `{name: {"shape", "datatype", "data"}}`.

    Raises InputError naming the input, the dimension or datatype, what came and what is taken.
    """
    named = inputs if isinstance(inputs, Mapping) else _only_input(inputs, specs)
    expected = {spec.name: spec for spec in specs}
    if named.keys() != expected.keys():
        raise InputError(f"inputs {sorted(named)} came; the model takes {sorted(expected)}")
    arrays = {name: _read(named[name], spec) for name, spec in expected.items()}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs have different numbers of rows, {counts}; send as many of each")
    return arrays


def _joined(parts: Sequence[Array]) -> Array:
    return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)


def _check_finite(outputs: Mapping[str, Array], chains: Sequence[Chain]) -> None:
    for array in outputs.values():
        is_finite = np.isfinite(array).reshape(len(chains), -1).all(axis=1)
        if not is_finite.all():
            raise overflow(chains[int(is_finite.argmin())])


def _only_input(inputs: object, specs: tuple[TensorSpec, ...]) -> dict[str, object]:
    if len(specs) > 1:
        raise InputError(
            f"the model takes {[spec.name for spec in specs]}; send them as {{name: {{shape, datatype, data}}}}"
        )
    return {specs[0].name: inputs}


def _read(value: object, spec: TensorSpec) -> Array:
    array = _read_tensor(value, spec) if isinstance(value, Mapping) else _as_array(value, spec)
    _check_shape(array, spec)
    dtype = DTYPES[spec.datatype]
    if array.dtype.kind not in _KINDS.get(dtype.kind, ""):
        raise _not_numbers(spec)
    if dtype.kind in "iu":
        _check_range(array, spec)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f":
        _check_numbers(cast, spec)
    return cast


def _read_tensor(value: Mapping[str, object], spec: TensorSpec) -> Array:
    unknown = sorted(value.keys() - {"shape", "datatype", "data"})
    if unknown or not isinstance(value.get("data"), list):
        raise InputError(
            f"input {spec.name!r} must have 'data', 'shape' and 'datatype' and nothing else; got {sorted(value)}"
        )
    if value.get("datatype", spec.datatype) != spec.datatype:
        raise InputError(f"input {spec.name!r} came as {value['datatype']!r}; the model takes {spec.datatype}")
    array = _as_array(value["data"], spec)
    shape = value.get("shape", array.shape)
    try:
        if min(shape) < 0:  # type: ignore[call-overload]
            raise ValueError("numpy would work a negative size out")
        return array.reshape(tuple(shape))  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"input {spec.name!r}: {array.size} values do not fill shape {shape}; make them agree"
        ) from error


def _as_array(value: object, spec: TensorSpec) -> Array:
    if isinstance(value, list) and _holds_other_than_numbers(value):
        raise _not_numbers(spec)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"input {spec.name!r} has rows of different lengths; the model takes {_shape(spec)}"
        ) from error
    is_rounded = array.dtype.kind in "fO" and DTYPES[spec.datatype].kind in "iu"
    return _whole(value, array, spec) if is_rounded and isinstance(value, list) else array


def _whole(value: list[object], array: Array, spec: TensorSpec) -> Array:
    """Integers of which some leave int64 and numpy would make floats or objects; anything else as it is."""
    exact = np.asarray(value, object)
    if set(map(type, exact.flat)) != {int}:
        return array
    _check_range(exact, spec)
    return exact.astype(DTYPES[spec.datatype])


def _holds_other_than_numbers(data: list[object], depth: int = 1) -> bool:
    """Whether a text is in a list, nested or flat: numpy would make room for each as if it were the longest."""
    kinds = set(map(type, data))
    if not kinds <= {int, float, bool, list}:
        return True
    rows = (row for row in data if isinstance(row, list))
    return list in kinds and depth < _MAX_DIMENSIONS and any(_holds_other_than_numbers(row, depth + 1) for row in rows)


def _not_numbers(spec: TensorSpec) -> InputError:
    return InputError(f"input {spec.name!r} holds values that are not {spec.datatype}; send plain numbers of that type")


def _check_shape(array: Array, spec: TensorSpec) -> None:
    if array.ndim != len(spec.shape):
        raise InputError(f"input {spec.name!r} has shape {list(array.shape)}; the model takes {_shape(spec)}")
    for place, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if wanted not in (-1, size):
            raise InputError(f"input {spec.name!r}: dimension {place} is {size}; the model takes {_shape(spec)}")
    if not len(array):
        raise InputError(f"input {spec.name!r} has no rows; send at least one")


def _check_range(array: Array, spec: TensorSpec) -> None:
    if not array.size or np.can_cast(array.dtype, DTYPES[spec.datatype], "safe"):
        return
    if said := datatype.beyond(int(array.min()), int(array.max()), spec.datatype):
        raise InputError(f"input {spec.name!r} holds {said}; send numbers in that range")


def _check_numbers(cast: Array, spec: TensorSpec) -> None:
    if not np.isfinite(cast).all():
        raise InputError(
            f"input {spec.name!r} holds NaN, infinity or a number beyond {spec.datatype}; send finite ones"
        )


def _shape(spec: TensorSpec) -> str:
    return f"{spec.datatype} {['any' if size == -1 else size for size in spec.shape]}"
