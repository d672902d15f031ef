"""Where remembered chains and jobs are kept: opened on first use, in the one thread that talks to it.

A server that remembers nothing never opens it, and never pays for importing SQLAlchemy: a third of its start.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from models.errors import UnavailableError

if TYPE_CHECKING:
    import sqlalchemy

    from service.cola.store import Store

_log = logging.getLogger("fathom.memory")
_T = TypeVar("_T")
# Hidden, so that it is no model of the repository.
FILE = ".fathom.db"
_PATIENCE_S = 10.0
_OPENING_S = 60.0  # SQLAlchemy is imported meanwhile, on a machine that may be busy loading models
# Two writers may put the same row at once; one of them then sees the other's and replaces it.
_TRIES = 3


class Database:
    """A SQLite file or another SQLAlchemy URL. Used from the event loop; what blocks is done in its thread."""

    def __init__(self, place: str, repository: Path) -> None:
        """`place`: a path, an SQLAlchemy URL, or "" for a file in the repository, else for this process's memory."""
        self._place, self._file = place, repository / FILE
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fathom-memory")
        self._engine: sqlalchemy.Engine | None = None

    @property
    def may_hold_something(self) -> bool:
        """Whether an earlier process can have left something; looks at no more than a file's existence."""
        return bool(self._place) or self._file.exists()

    async def run(self, work: Callable[["Store"], _T]) -> _T:
        """Do `work` in one transaction; it may be done again, so it must only touch the store.

        Raises UnavailableError naming the place and what is wrong with it; the next call tries again.
        """
        patience_s = _PATIENCE_S if self._engine else _OPENING_S
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, work)
        except TimeoutError as error:
            raise self._unavailable(f"no answer within {patience_s:.0f} s") from error

    async def close(self) -> None:
        """Close the connections; waits for the call under way no longer than for any other."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.wait([asyncio.get_running_loop().run_in_executor(self._thread, engine.dispose)], timeout=1)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _call(self, work: Callable[["Store"], _T]) -> _T:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            if self._engine is None:
                self._engine = self._open()
            return _in_transaction(self._engine, work)
        except (SQLAlchemyError, ImportError) as error:
            # SQLAlchemy adds the statement and a link; the driver says what is wrong.
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise self._unavailable(reason) from error

    def _open(self) -> "sqlalchemy.Engine":
        from sqlalchemy.exc import OperationalError

        from service.cola.tables import is_not_writable, open_tables

        if self._place:
            return open_tables(self._place)
        try:
            return open_tables(str(self._file))
        except OperationalError as error:
            if not is_not_writable(error):
                raise
        _log.warning("%s cannot be written; chains and jobs are kept in memory, until this process ends", self._file)
        return open_tables(":memory:")

    def _unavailable(self, reason: str) -> UnavailableError:
        error = UnavailableError(
            f"the memory at {_shown(self._place) or str(self._file)!r} cannot be used: {reason}; "
            "repair it, move it away, or set FATHOM_MEMORY"
        )
        _log.error("%s", error)
        return error


def _shown(place: str) -> str:
    """A place without the user and the password that a URL may hold."""
    scheme, is_url, rest = place.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if is_url else place


def _in_transaction(engine: "sqlalchemy.Engine", work: Callable[["Store"], _T]) -> _T:
    from sqlalchemy.exc import IntegrityError

    from service.cola.store import Store

    for _ in range(_TRIES - 1):
        try:
            with engine.begin() as connection:
                return work(Store(connection))
        except IntegrityError:
            continue
    with engine.begin() as connection:
        return work(Store(connection))
