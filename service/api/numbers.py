"""JSON whose `inputs` are rows of numbers, read straight into an array: no Python object for any number.

Knows no model. What is not plain rows is read by orjson, which is also what says where a document is malformed.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray


def read_document(content: bytes | memoryview) -> Any:
    """The parsed document; `inputs` that are a full rectangle of numbers as int64 or float64 [B, ...].

    Raises orjson's JSONDecodeError.
    """
    document = _read(bytes(content))
    return orjson.loads(content) if document is None else document


def _read(content: bytes) -> dict[str, Any] | None:
    """The document with its rows as an array, or None where only orjson would read it rightly."""
    try:
        parsed: Any = simdjson.Parser().parse(content)
        names = list(parsed.keys())
        inputs = parsed["inputs"]
        # Of a name that comes twice the last counts, which simdjson does not find.
        if len(names) > len({*names}) or not isinstance(inputs, simdjson.Array):
            return None
        others = {name: _plain(parsed[name]) for name in names if name != "inputs"}
        return {**others, "inputs": _rectangle(inputs, content, others)}
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _rectangle(inputs: Any, content: bytes, others: dict[str, Any]) -> NDArray[Any]:
    """Raises ValueError, TypeError or IndexError if the rows are not all alike, or hold something else than numbers."""
    shape, rows, num_lists = [len(inputs)], [inputs], 1
    while isinstance(rows[0][0], simdjson.Array):
        rows = [row for outer in rows for row in outer]
        num_lists += len(rows)
        shape.append(_only({len(row) for row in rows}))
    # A list where its neighbours have a number would be flattened: every bracket has to be accounted for.
    if b"\\" in content or content.count(b"[") != num_lists + orjson.dumps(others).count(b"["):
        raise ValueError("a list among numbers")
    return _numbers(inputs, isinstance(rows[0][0], int)).reshape(shape)


def _numbers(inputs: Any, is_whole: bool) -> NDArray[Any]:
    if is_whole:
        try:
            return np.frombuffer(inputs.as_buffer(of_type="i"), np.int64)
        except TypeError:
            pass  # a fraction further on
    return np.frombuffer(inputs.as_buffer(of_type="d"), np.float64)


def _only(lengths: Iterable[int]) -> int:
    (length,) = lengths
    return length
