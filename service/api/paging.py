"""Long lists page by page: a limit, and a cursor that says where the page before ended."""

import math
from collections.abc import Sequence
from typing import Annotated, Protocol

from fastapi import Query

from models.errors import InputError
from service.cola.memory import Cursor

Limit = Annotated[int, Query(ge=1, le=1000, description="entries of one page")]
After = Annotated[str | None, Query(alias="cursor", description="`next` of the page before")]


class Dated(Protocol):
    """An entry of a list, newest first."""

    @property
    def id(self) -> str: ...
    @property
    def created(self) -> float: ...


def read_cursor(text: str | None) -> Cursor | None:
    """The place a cursor names. Raises InputError if it is none of ours."""
    if text is None:
        return None
    created, _, identifier = text.partition("_")
    try:
        seconds = float(created)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and identifier.isalnum()):
        raise InputError(f"cursor {text[:60]!r} is not one of ours; send 'next' of the page before, or none")
    return seconds, identifier


def next_cursor(page: Sequence[Dated], limit: int) -> str | None:
    """The cursor of the page after a full one; a page that is not full is the last."""
    return f"{page[-1].created!r}_{page[-1].id}" if len(page) == limit else None
