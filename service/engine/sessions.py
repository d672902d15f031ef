"""Open sessions of recurrent models: whose they are, how far they read, when they end. Knows no tensor and no HTTP.

A session is a sequence that comes in several requests. Between them it keeps the states its visits were left in, whose
size does not depend on how much was read.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeAlias

from models.chain import Chain
from models.errors import ConflictError, FullError, GoneError, NotFoundError
from service.backends.protocol import State

# Client, model, id: a client's sessions are nobody else's.
_Key: TypeAlias = tuple[str, str, str]
# So many sessions that ended are remembered with the reason.
_NUM_OVER = 4096
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long a session may be idle; how many a model has and a client of it, and their memory, states alone."""

    idle_s: float
    max_sessions: int
    max_client_sessions: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SessionAsked:
    """What a request says of its session: none to begin one under an id that is made, or the id of one.

    starts: begin, whatever was there under the id. ends: forget it after the answer.
    """

    id: str | None
    starts: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """One loaded version of a model; `observe_end` is told why each of its sessions ended."""

    model: str
    version: str
    observe_end: Callable[[str], None]


@dataclass(eq=False, slots=True)
class Session:
    """One open sequence. states: of each visit, or none before the first step; replaced once an answer is complete."""

    id: str
    client: str
    owner: Owner
    chain: Chain
    num_bytes: int
    used_at: float
    num_steps: int = 0
    states: Sequence[State] = ()
    is_busy: bool = True
    before: "Session | None" = field(default=None, repr=False)  # what it replaces if its first request succeeds

    @property
    def key(self) -> _Key:
        return self.client, self.owner.model, self.id


class Sessions:
    """All open sessions of a process, those used last at the end. Lives on the event loop."""

    def __init__(self, limits: SessionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._open: OrderedDict[_Key, Session] = OrderedDict()
        self._over: OrderedDict[_Key, str] = OrderedDict()
        self._alarm: asyncio.TimerHandle | None = None

    def of(self, owner: Owner) -> list[Session]:
        """The open sessions of a version."""
        return [session for session in self._open.values() if session.owner is owner]

    def version_of(self, client: str, model: str, id: str) -> str | None:
        """The version that a session was begun on and stays with."""
        session = self._open.get((client, model, id))
        return session.owner.version if session else None

    def begin(self, owner: Owner, client: str, id: str | None, chain: Chain, num_bytes: int) -> Session:
        """A new session, in use by the caller until `release`. Raises FullError or ConflictError."""
        self.expire()
        session = Session(id or secrets.token_urlsafe(_ID_BYTES), client, owner, chain, num_bytes, self._clock())
        before = self._open.get(session.key)
        if before is not None:
            _refuse_busy(before)
            before.is_busy = True
        try:
            self._check_room(session, before)
        except FullError:
            if before is not None:
                before.is_busy = False
            raise
        session.before = before
        self._put(session)
        return session

    def resume(self, owner: Owner, client: str, id: str) -> Session:
        """An open session, in use by the caller until `release`. Raises NotFoundError, GoneError or ConflictError."""
        session = self.find(owner, client, id)
        _refuse_busy(session)
        session.is_busy = True
        return session

    def find(self, owner: Owner, client: str, id: str) -> Session:
        """An open session, to be looked at. Raises NotFoundError, GoneError or ConflictError."""
        self.expire()
        key = (client, owner.model, id)
        session = self._open.get(key)
        if session is None:
            raise self._missing(key)
        if session.owner.version != owner.version:
            raise ConflictError(
                f"session {id!r} reads version {session.owner.version!r} of model {owner.model!r} and the request says "
                f"{owner.version!r}; leave the version out, or begin another session"
            )
        if session.owner is not owner:
            raise GoneError(_over(id, f"version {owner.version!r} of model {owner.model!r} was loaded anew"))
        return session

    def keep(self, session: Session, states: Sequence[State], num_steps: int) -> None:
        """Take the states in that a complete answer left."""
        session.states, session.num_steps, session.before = tuple(states), num_steps, None

    def release(self, session: Session) -> None:
        """Let others use a session. One whose first request failed is as if it had never been."""
        session.is_busy, session.used_at = False, self._clock()
        if not self._is_open(session):
            return  # its model was unloaded meanwhile
        del self._open[session.key]
        last = session if session.num_steps else session.before
        if last is not None:
            last.is_busy = False
            self._put(last)
        self._wake_later()

    def end(self, session: Session) -> None:
        """Forget a session, as its client wanted. Raises ConflictError."""
        _refuse_busy(session)
        if self._is_open(session):
            self._forget(session, "ended", "it was ended")

    def end_all(self, owner: Owner) -> None:
        """Forget the sessions of a version that is unloaded."""
        for session in self.of(owner):
            told = f"version {owner.version!r} of model {owner.model!r} was unloaded"
            self._forget(session, "unloaded", told)

    def expires_in_s(self, session: Session) -> float | None:
        """Seconds that a session may stay idle from now on; None if it is over."""
        return self._left_s(session) if self._is_open(session) else None

    def _is_open(self, session: Session) -> bool:
        return self._open.get(session.key) is session

    def _left_s(self, session: Session) -> float:
        return max(session.used_at + self.limits.idle_s - self._clock(), 0.0)

    def expire(self) -> None:
        """Forget who was idle for too long."""
        for session in list(takewhile(lambda one: self._left_s(one) <= 0, self._idle())):
            self._forget(session, "expired", f"it was idle for more than {self.limits.idle_s:g} s")

    def _idle(self) -> Iterator[Session]:
        """Who is not in use, the longest idle first."""
        return (session for session in self._open.values() if not session.is_busy)

    def _put(self, session: Session) -> None:
        self._over.pop(session.key, None)
        self._open[session.key] = session
        self._open.move_to_end(session.key)

    def _forget(self, session: Session, reason: str, told: str) -> None:
        del self._open[session.key]
        session.states = ()
        session.owner.observe_end(reason)
        self._over[session.key] = told
        if len(self._over) > _NUM_OVER:
            self._over.popitem(last=False)

    def _missing(self, key: _Key) -> NotFoundError | GoneError | ConflictError:
        client, model, id = key
        if key in self._over:
            return GoneError(_over(id, self._over[key]))
        others = [other for who, other, one in self._open if (who, one) == (client, id)]
        if others:
            return ConflictError(
                f"session {id!r} reads model {others[0]!r}, not {model!r}; ask that one, or begin another"
            )
        return NotFoundError(
            f"no session {id!r} of this client is open on model {model!r}; begin one with 'session': 'new'"
        )

    def _check_room(self, new: Session, before: Session | None) -> None:
        limits, model = self.limits, new.owner.model
        of_model = [one for one in self._open.values() if one.owner.model == model and one is not before]
        of_client = [one for one in of_model if one.client == new.client]
        num_bytes = sum(one.num_bytes for one in of_model)
        if len(of_client) >= limits.max_client_sessions:
            what = f"client {new.client!r} has {len(of_client)} open sessions of {limits.max_client_sessions}"
            raise self._full(what, "FATHOM_MAX_CLIENT_SESSIONS", of_client)
        if len(of_model) >= limits.max_sessions:
            what = f"{len(of_model)} sessions of {limits.max_sessions} are open"
            raise self._full(what, "FATHOM_MAX_SESSIONS", of_model)
        if num_bytes + new.num_bytes > limits.max_bytes:
            what = f"open sessions hold {num_bytes} bytes of {limits.max_bytes} and one more takes {new.num_bytes}"
            raise self._full(what, "FATHOM_SESSION_BYTES", of_model)

    def _full(self, what: str, setting: str, sessions: Sequence[Session]) -> FullError:
        after_s = min((self._left_s(one) for one in sessions), default=self.limits.idle_s)
        return FullError(f"{what} on this model; end some, come back later, or raise {setting}", after_s, "sessions")

    def _wake_later(self) -> None:
        """Have memory given back although nobody asks."""
        if self._alarm is None and self._open:
            self._alarm = asyncio.get_running_loop().call_later(self._next_s(), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.expire()
        self._wake_later()

    def _next_s(self) -> float:
        first = next(self._idle(), None)
        return self.limits.idle_s if first is None else self._left_s(first)


def _refuse_busy(session: Session) -> None:
    if session.is_busy:
        raise ConflictError(f"session {session.id!r} is in use by another request; wait for its answer first")


def _over(id: str, why: str) -> str:
    return f"session {id!r} is over: {why}; begin another with 'session': 'new'"
