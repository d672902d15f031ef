"""A version's folder that stays where it is while somebody uses it, in this process or in another.

Users hold a shared lock on the folder itself, whoever would remove it needs the exclusive one; the kernel lets go of
the locks of a process that dies. Where a file system cannot lock folders nothing is ever removed.
"""

import fcntl
import os
from pathlib import Path
from typing import Self


class Lease:
    """A folder, held until it is let go; without a lock where nobody removes anything."""

    def __init__(self, directory: Path, lock: int | None = None) -> None:
        self.directory, self._lock = directory, lock

    def let_go(self) -> None:
        """Allow others to remove it. A second time does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def __del__(self) -> None:  # whoever fetched it was cancelled
        self.let_go()


def use(directory: Path) -> Lease | None:
    """Hold a folder beside others who do; None if it was removed or replaced in the meantime."""
    return _locked(directory, fcntl.LOCK_SH, is_needed=False)


def alone(directory: Path) -> Lease:
    """Hold a folder that nobody removes, once those before have let it go."""
    return _locked(directory, fcntl.LOCK_EX, is_needed=False) or Lease(directory)


def seize(directory: Path) -> Lease | None:
    """Hold a folder alone; None if somebody uses it, if it is gone, or if it cannot be locked here."""
    return _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB, is_needed=True)


def _locked(directory: Path, kind: int, is_needed: bool) -> Lease | None:
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    lease = Lease(directory, lock)
    try:
        fcntl.flock(lock, kind)
    except OSError:
        if is_needed:
            lease.let_go()
            return None
    if _is_at(lock, directory):
        return lease
    lease.let_go()
    return None


def _is_at(lock: int, directory: Path) -> bool:
    """Whether the folder that is held is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock), directory.stat())
    except OSError:
        return False
