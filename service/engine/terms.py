"""On whose behalf work is done: the client, how urgent it is, until when it matters. Knows no HTTP and no queue."""

import contextvars
import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# As in Triton 0 asks for the default and 1 is the most urgent.
NUM_PRIORITIES = 5
DEFAULT_PRIORITY = 3


class SessionTold(NamedTuple):
    """How far the session of a request is; None left where it was ended."""

    id: str
    num_steps: int
    expires_in_s: float | None


@dataclass(slots=True)
class Told:
    """What the answer to one request must say beside its outputs; whoever does it notes it here.

    degraded: the chain that ran in place of the full one, in text form. cached: samples answered from memory.
    warnings: what was answered, and should be taken with care. session: where the request was one of a session.
    """

    degraded: str = ""
    cached: int = 0
    warnings: list[str] = field(default_factory=list)
    session: SessionTold | None = None


class Terms(NamedTuple):
    """The terms of one request. A tuple, for one is made per request and a frozen dataclass costs three times that.

    priority: 1 (most urgent) to NUM_PRIORITIES. deadline: on the clock of `time.perf_counter`; infinity is none.
    timeout_s: what the deadline came from.
    """

    client: str = ""
    priority: int = DEFAULT_PRIORITY
    arrived_at: float = 0.0
    timeout_s: float = math.inf
    told: Told | None = None

    @property
    def deadline(self) -> float:
        return self.arrived_at + self.timeout_s

    def tightened(self, timeout_s: float | None, priority: int | None) -> "Terms":
        """The same terms with what a request says of itself; it can ask for less time than it has, not for more."""
        return self._replace(
            timeout_s=self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s),
            priority=priority or self.priority,
        )


_current: contextvars.ContextVar[Terms | None] = contextvars.ContextVar("terms", default=None)


def current_terms() -> Terms:
    """The terms of the request that is being answered; of nobody in particular outside of one."""
    return _current.get() or Terms(arrived_at=time.perf_counter(), told=Told())


def noted() -> dict[str, Any]:
    """What the answer to the current request must say beside its outputs, by field."""
    told = current_terms().told
    if told is None or not (told.degraded or told.cached or told.warnings or told.session):
        return {}
    said: dict[str, Any] = {"degraded": bool(told.degraded), "cached": told.cached, "warnings": told.warnings}
    if told.session:
        said["session"] = _session(told.session)
    return {name: value for name, value in said.items() if value}


def _session(told: SessionTold) -> dict[str, Any]:
    return {"id": told.id, "steps": told.num_steps, "expires_in_s": told.expires_in_s}


def set_terms(terms: Terms) -> "contextvars.Token[Terms | None]":
    """Let everything that is queued in this context from now on have these terms."""
    return _current.set(terms)


def reset_terms(token: "contextvars.Token[Terms | None]") -> None:
    """Undo `set_terms`."""
    _current.reset(token)


def ask(timeout_s: float | None = None, priority: int | None = None) -> None:
    """Tighten the terms of the request that is being answered by what its body says."""
    if timeout_s is not None or priority:
        _current.set(current_terms().tightened(timeout_s, priority))
