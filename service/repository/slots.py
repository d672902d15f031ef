"""Loaded versions, and who still needs them: a version is freed only once nobody who got it is under way.

A request holds what it asked for until it is answered, the last byte of a stream included.
"""

import asyncio
import contextvars
import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from service.engine.engine import Engine
from service.repository.lease import Lease

State: TypeAlias = Literal["available", "loading", "ready", "unloading", "failed"]
Key: TypeAlias = tuple[str, str]


@dataclass(slots=True, eq=False)
class Slot:
    """One loaded version. `num_bytes`: size of its backend's files; `stamp`: what it was loaded from, and how.

    `lease` keeps its files where they are, for they may be mapped, and read again by ranks that are started anew.
    """

    engine: Engine
    num_bytes: int
    stamp: str
    lease: Lease | None = None
    is_bound: bool = False  # a model of this process, without files to come back from
    num_holders: int = 0
    is_let_go: bool = False
    used_at: float = field(default_factory=time.monotonic)
    _left: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> None:
        """One more who needs it."""
        self.num_holders += 1
        self.used_at = time.monotonic()

    def release(self) -> None:
        """One less."""
        self.num_holders -= 1
        if not self.num_holders:
            self._left.set()

    def let_go(self) -> None:
        """Nobody is waited for any longer."""
        self.is_let_go = True
        self._left.set()

    async def wait_until_idle(self) -> None:
        """Return once nobody needs it."""
        while self.num_holders and not self.is_let_go:
            self._left.clear()
            await self._left.wait()


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one model: what is loaded of it, the reason where something failed, and the stamp of what did."""

    state: State
    slot: Slot | None = None
    reason: str = ""
    stamp: str = ""

    @property
    def engine(self) -> Engine | None:
        return self.slot.engine if self.slot else None


_held: contextvars.ContextVar[list[Slot] | None] = contextvars.ContextVar("held", default=None)


def hold(slot: Slot) -> None:
    """Keep a version from being freed until the innermost `Holding` ends; outside of one it is not kept."""
    held = _held.get()
    if held is not None:
        slot.take()
        held.append(slot)


class Holding:
    """A context within which what is held stays loaded. A class, for one is entered per request."""

    __slots__ = ("_held", "_token")

    def __enter__(self) -> None:
        self._held: list[Slot] = []
        self._token = _held.set(self._held)

    def __exit__(self, *_: object) -> None:
        _held.reset(self._token)
        for slot in self._held:
            slot.release()
