"""What a call can end with beside an answer: problem documents by status, and connections that fail."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson

from models.errors import FathomError


class ClientError(FathomError):
    """Root of what a client raises."""


class UnreachableError(ClientError, ConnectionError):
    """No connection, or one that broke before the answer was whole."""


class TimeOverError(ClientError, TimeoutError):
    """The time the caller gave was over before an answer came."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a server said instead of an answer. `errors` are fields and reasons, where it named them."""

    status: int
    title: str
    detail: str
    request_id: str = ""
    retry_after_s: float | None = None
    errors: tuple[Mapping[str, str], ...] = field(default=())


class ProblemError(ClientError):
    """A problem a server answered with."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def title(self) -> str:
        return self.problem.title

    @property
    def detail(self) -> str:
        """Value, limit and remedy, in a sentence."""
        return self.problem.detail

    @property
    def request_id(self) -> str:
        """What the server's log knows the call by."""
        return self.problem.request_id

    @property
    def retry_after_s(self) -> float | None:
        return self.problem.retry_after_s


class InvalidError(ProblemError):
    """The request, an input or a chain does not fit: 400, 409, 413, 415 or 422."""


class UnknownError(ProblemError):
    """No such model, version, session or route: 404, 405, or 410 where it was there before."""


class BusyError(ProblemError):
    """Too much waits already: 429."""


class UnavailableError(ProblemError):
    """The server drains or the model is not loaded: 503."""


class TooLateError(ProblemError, TimeOverError):
    """The server gave up when the time was over: 504."""


class ServerError(ProblemError):
    """The server or the model failed: any other 5xx."""


_BY_STATUS: Mapping[int, type[ProblemError]] = {
    **dict.fromkeys((400, 409, 413, 415, 422), InvalidError),
    **dict.fromkeys((404, 405, 410), UnknownError),
    429: BusyError,
    503: UnavailableError,
    504: TooLateError,
}


def error_of(problem: Problem) -> ProblemError:
    """The exception of a problem."""
    kind = _BY_STATUS.get(problem.status, ServerError if problem.status >= 500 else ProblemError)
    return kind(problem)


def read_problem(status: int, content: bytes, request_id: str, retry_after_s: float | None) -> Problem:
    """A problem from a response, whichever dialect's shape it has; of a proxy's page only the status is kept."""
    try:
        document: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = {}
    said = document if isinstance(document, dict) else {}
    title = said.get("title") or _phrase(status)
    detail = said.get("detail") or said.get("error") or content[:200].decode("utf-8", "replace")
    return Problem(status, str(title), str(detail), request_id, retry_after_s, tuple(said.get("errors") or ()))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown status"
