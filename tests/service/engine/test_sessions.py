"""Sessions: whose they are, who gets one, when they end. No model, no tensor."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from models.chain import Chain
from models.errors import ConflictError, FullError, GoneError, NotFoundError
from service.engine.sessions import Owner, Session, SessionLimits, Sessions

FULL = Chain((0, 1, 2))
LIMITS = SessionLimits(idle_s=10.0, max_sessions=3, max_client_sessions=2, max_bytes=1000)


@dataclass
class Book:
    """Sessions with a clock in the hand, and why some ended."""

    limits: SessionLimits = LIMITS
    now: float = 0.0
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.limits, lambda: self.now)
        self.owner = self.version("m")

    def version(self, model: str, version: str = "1") -> Owner:
        return Owner(model, version, self.ended.append)

    def opened(self, id: str, client: str = "a", owner: Owner | None = None, num_bytes: int = 10) -> Session:
        session = self.sessions.begin(owner or self.owner, client, id, FULL, num_bytes)
        return self.read(session, 1)

    def read(self, session: Session, num_steps: int) -> Session:
        self.sessions.keep(session, [object()] * 3, session.num_steps + num_steps)
        self.sessions.release(session)
        return session


def on_a_loop(check: Callable[[Book], None]) -> None:
    async def run() -> None:
        check(Book())

    asyncio.run(run())


def test_session_of_a_failed_first_request_never_was() -> None:
    def check(book: Book) -> None:
        session = book.sessions.begin(book.owner, "a", "x", FULL, 10)
        book.sessions.release(session)
        assert book.sessions.of(book.owner) == []
        with pytest.raises(NotFoundError, match="no session 'x'"):
            book.sessions.resume(book.owner, "a", "x")
        assert book.ended == []

    on_a_loop(check)


def test_new_beginning_replaces_only_once_it_is_answered() -> None:
    def check(book: Book) -> None:
        old = book.opened("x")
        new = book.sessions.begin(book.owner, "a", "x", FULL, 10)
        with pytest.raises(ConflictError, match="in use"):
            book.sessions.begin(book.owner, "a", "x", FULL, 10)
        book.sessions.release(new)
        assert book.sessions.find(book.owner, "a", "x") is old
        assert not old.is_busy
        new = book.read(book.sessions.begin(book.owner, "a", "x", FULL, 10), 5)
        assert book.sessions.find(book.owner, "a", "x") is new
        assert len(book.sessions.of(book.owner)) == 1

    on_a_loop(check)


def test_new_beginning_without_room_leaves_what_was_there() -> None:
    def check(book: Book) -> None:
        book.opened("x", num_bytes=100)
        with pytest.raises(FullError, match="1001"):
            book.sessions.begin(book.owner, "a", "x", FULL, 1001)
        assert book.sessions.resume(book.owner, "a", "x").num_steps == 1

    on_a_loop(check)


def test_idle_sessions_expire_and_busy_ones_do_not() -> None:
    def check(book: Book) -> None:
        book.opened("idle")
        busy = book.opened("busy")
        book.sessions.resume(book.owner, "a", "busy")
        book.now = 10.0
        with pytest.raises(GoneError, match="idle for more than 10 s"):
            book.sessions.resume(book.owner, "a", "idle")
        book.now = 1000.0
        book.read(busy, 3)
        assert book.sessions.find(book.owner, "a", "busy").num_steps == 4
        assert book.sessions.expires_in_s(busy) == 10.0
        book.now = 1009.9
        book.sessions.expire()
        assert book.ended == ["expired"]

    on_a_loop(check)


def test_use_puts_the_end_off() -> None:
    def check(book: Book) -> None:
        first, second = book.opened("1"), book.opened("2")
        for book.now in (6.0, 12.0, 18.0):
            book.sessions.resume(book.owner, "a", "1")
            book.read(first, 1)
        assert book.sessions.of(book.owner) == [first]
        assert second.states == ()

    on_a_loop(check)


def test_memory_is_given_back_although_nobody_asks() -> None:
    async def run() -> list[str]:
        ended: list[str] = []
        sessions = Sessions(SessionLimits(0.05, 3, 3, 1000))
        owner = Owner("m", "1", ended.append)
        for id in ("x", "y"):
            session = sessions.begin(owner, "a", id, FULL, 10)
            sessions.keep(session, (), 1)
            sessions.release(session)
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.2)
        return ended

    assert asyncio.run(run()) == ["expired", "expired"]


def test_client_is_bounded_before_it_bounds_others() -> None:
    def check(book: Book) -> None:
        book.opened("1")
        book.now = 4.0
        book.opened("2")
        with pytest.raises(FullError, match=r"client 'a' has 2 open sessions of 2.*FATHOM_MAX_CLIENT_SESSIONS") as full:
            book.opened("3")
        assert (full.value.retry_after_s, full.value.unit) == (6.0, "sessions")
        book.opened("1", client="b")
        with pytest.raises(FullError, match=r"3 sessions of 3 are open.*FATHOM_MAX_SESSIONS"):
            book.opened("2", client="b")
        other = book.version("another")
        book.opened("1", client="b", owner=other)  # of another model the room is its own
        book.sessions.end(book.sessions.find(book.owner, "a", "1"))
        book.opened("2", client="b")

    on_a_loop(check)


def test_bytes_are_bounded() -> None:
    def check(book: Book) -> None:
        book.opened("1", num_bytes=600)
        with pytest.raises(FullError, match=r"hold 600 bytes of 1000 and one more takes 500.*FATHOM_SESSION_BYTES"):
            book.opened("2", num_bytes=500)
        book.opened("2", num_bytes=400)

    on_a_loop(check)


def test_session_is_its_clients_own() -> None:
    def check(book: Book) -> None:
        mine = book.opened("x", client="a")
        with pytest.raises(NotFoundError, match="of this client"):
            book.sessions.resume(book.owner, "b", "x")
        assert book.opened("x", client="b") is not mine

    on_a_loop(check)


def test_other_models_and_versions_are_named() -> None:
    def check(book: Book) -> None:
        book.opened("x")
        with pytest.raises(ConflictError, match="session 'x' reads model 'm', not 'other'"):
            book.sessions.resume(book.version("other"), "a", "x")
        with pytest.raises(ConflictError, match="reads version '1' of model 'm' and the request says '2'"):
            book.sessions.resume(book.version("m", "2"), "a", "x")
        with pytest.raises(GoneError, match="loaded anew"):
            book.sessions.resume(book.version("m", "1"), "a", "x")
        assert book.sessions.version_of("a", "m", "x") == "1"
        assert book.sessions.version_of("b", "m", "x") is None

    on_a_loop(check)


def test_unloading_ends_sessions_those_in_use_too() -> None:
    def check(book: Book) -> None:
        book.opened("idle")
        busy = book.opened("busy")
        book.sessions.resume(book.owner, "a", "busy")
        book.sessions.end_all(book.owner)
        assert book.ended == ["unloaded", "unloaded"]
        book.read(busy, 1)
        assert book.sessions.expires_in_s(busy) is None
        book.sessions.end(busy)
        assert book.ended == ["unloaded", "unloaded"]
        with pytest.raises(GoneError, match="version '1' of model 'm' was unloaded"):
            book.sessions.resume(book.owner, "a", "busy")

    on_a_loop(check)


def test_made_ids_cannot_be_guessed() -> None:
    def check(book: Book) -> None:
        ids = [book.sessions.begin(book.owner, client, None, FULL, 1).id for client in "abc"]
        assert len(set(ids)) == 3
        assert min(map(len, ids)) >= 22

    on_a_loop(check)
