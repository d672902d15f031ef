"""The rows of a study: JSON lines, each a sample and its right answer. Knows no model."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from models.errors import InputError

FIELDS = ("prompt", "inputs", "target", "family", "level", "decoy")


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: a text or a row of numbers, and the answer it should get.

    line: 1-based, of its file. decoy: a wrong answer to search for as a control; None lets the study make one.
    """

    line: int
    sample: str | list[Any]
    target: str | int
    family: str = "all"
    level: int = 0
    decoy: str | int | None = None

    @property
    def cell(self) -> tuple[str, int]:
        return self.family, self.level


def read_rows(file: Path, limit: int | None = None) -> list[Row]:
    """All rows, or `limit` of them, taken evenly from every family and level in the order of the file.

    Raises InputError naming the line and what is wrong with it.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    rows = [_row(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{file} has no rows; write one JSON object per line")
    return rows if limit is None else sorted(_evenly(rows)[:limit], key=lambda row: row.line)


def _evenly(rows: Iterable[Row]) -> list[Row]:
    """The first row of every cell, then the second of every cell, and so on."""
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return [row for row in chain.from_iterable(zip_longest(*cells.values())) if row]


def _row(number: int, line: str) -> Row:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"line {number} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"line {number} is a {type(found).__name__}; write a JSON object")
    if unknown := sorted(found.keys() - set(FIELDS)):
        raise InputError(f"line {number} has {unknown[0]!r}, which is no field; there are {', '.join(FIELDS)}")
    if ("prompt" in found) == ("inputs" in found):
        raise InputError(f"line {number} needs either 'prompt', a text, or 'inputs', a row of numbers")
    is_text = "prompt" in found
    _expect(number, found, "prompt" if is_text else "inputs", str if is_text else list)
    answer = str if is_text else int
    _expect(number, found, "target", answer)
    _expect(number, {"family": "all", **found}, "family", str)
    _expect(number, {"level": 0, **found}, "level", int)
    if "decoy" in found:
        _expect(number, found, "decoy", answer)
        if found["decoy"] == found["target"]:
            raise InputError(f"line {number}: the decoy is the target; a decoy is a wrong answer")
    optional = {name: found[name] for name in ("family", "level", "decoy") if name in found}
    return Row(number, found["prompt" if is_text else "inputs"], found["target"], **optional)


def _expect(number: int, found: dict[str, Any], field: str, kind: type) -> None:
    if field not in found:
        raise InputError(f"line {number} has no {field!r}; every row needs one")
    if type(found[field]) is not kind:
        raise InputError(f"line {number}: {field} is {found[field]!r}, which is no {kind.__name__}")
