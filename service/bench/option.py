"""Options that more than one bench has, read and checked before anything is started."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from models.errors import InputError

_T = TypeVar("_T", int, float)


def numbers(text: str, kind: Callable[[str], _T], name: str) -> tuple[_T, ...]:
    """Numbers with commas between. Raises InputError."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{name} is {text!r}; write numbers with commas between, like 1,8,64") from error


def check_plot(path: Path) -> None:
    """Before an hour is spent on what cannot be drawn. Raises InputError."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot is {str(path)!r}; name a .png, .svg or .pdf file")
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib; install the extra 'study'")
