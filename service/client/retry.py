"""When a call may be tried again, and after how long. Decides; sends and sleeps nowhere."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from service.client.errors import (
    BusyError,
    ClientError,
    ProblemError,
    TimeOverError,
    UnavailableError,
    UnreachableError,
)

# Part of the time left, and at most so many seconds of it, that a server is not told of: for its answer's way back.
_WAY_BACK, _MOST_WAY_BACK_S = 0.1, 0.1
# More than sockets and servers take.
_FOR_EVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried again, and the pauses between: doubled each time, drawn from the upper half.

    Tried again are 429, 503 and connections that fail, those that broke midway only where asking twice does no harm.
    A pause is never shorter than the server's `Retry-After`, and a pause that would outlast the call ends it at once.
    """

    max_retries: int = 3
    first_pause_s: float = 0.1
    max_pause_s: float = 10.0


class Attempts:
    """The tries of one call. `timeout_s` is for all of them and the pauses between; None is no bound."""

    def __init__(
        self,
        retries: Retries,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retries, self._clock, self._draw = retries, clock, draw
        self._ends = None if timeout_s is None or timeout_s >= _FOR_EVER_S else clock() + timeout_s
        self._timeout_s = timeout_s
        self._num_failed = 0

    def left_s(self) -> float | None:
        """Seconds there are. Raises TimeOverError if there are none."""
        if self._ends is None:
            return None
        left_s = self._ends - self._clock()
        if left_s <= 0:
            raise self._over()
        return left_s

    def told_s(self) -> float | None:
        """Seconds to tell the server of: a little less, so that its word arrives."""
        left_s = self.left_s()
        return None if left_s is None else left_s - min(left_s * _WAY_BACK, _MOST_WAY_BACK_S)

    def pause_s(self, error: Exception, is_repeatable: bool) -> float:
        """How long to wait before the next try. Raises the error, as one of ours, if there is to be none."""
        ours = self._ours(error)
        self._num_failed += 1
        if self._num_failed > self._retries.max_retries or not _may_repeat(error, ours, is_repeatable):
            raise ours from error
        pause_s = self._drawn_s(ours)
        if self._ends is not None and self._clock() + pause_s >= self._ends:
            raise ours from error
        return pause_s

    def _drawn_s(self, error: ClientError) -> float:
        longest_s = min(self._retries.first_pause_s * 2.0 ** (self._num_failed - 1), self._retries.max_pause_s)
        drawn_s = longest_s * (1 + self._draw()) / 2
        told_s = error.retry_after_s if isinstance(error, ProblemError) else None
        # On top, for those who were told the same second would come back as one crowd.
        return drawn_s if told_s is None else told_s + drawn_s

    def _ours(self, error: Exception) -> ClientError:
        if isinstance(error, ClientError):
            return error
        if isinstance(error, httpx.TimeoutException):
            return self._over()
        return UnreachableError(f"{type(error).__name__}: {error}; is the server there?")

    def _over(self) -> TimeOverError:
        return TimeOverError(f"no answer within {self._timeout_s} s; allow more time, or send less at a time")


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a `Retry-After`, which may also be a date; None if there is none that can be read."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _may_repeat(error: Exception, ours: ClientError, is_repeatable: bool) -> bool:
    if isinstance(ours, BusyError | UnavailableError | UnreachableError):
        # Refused, or never sent; what broke midway may have been done.
        return is_repeatable or isinstance(ours, ProblemError) or isinstance(error, httpx.ConnectError)
    return False
