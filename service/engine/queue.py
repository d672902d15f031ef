"""The bounded room in front of a model: what may wait, and when there is room again. Knows no thread, no backend."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TypeVar

from models.errors import LengthError, OverloadError
from service.engine.drain import DrainRate
from service.engine.line import Line
from service.engine.shared import SharedWork
from service.engine.work import GenerateWork, SequenceWork, Work

_W = TypeVar("_W", bound=Work)
# Units of the drain rate, in this order.
_SAMPLES, _ROWS, _TOKENS = range(3)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait, in units of work, rows and tokens, and in rows of one client; one more is refused at once."""

    max_requests: int
    max_rows: int
    max_tokens: int
    max_client_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch: rows, and tokens (padding included); and of one read of prompts while others decode.

    The event loop runs what takes no longer than `max_inline_s` itself: waking a thread costs a small model more than
    its rows.
    """

    max_rows: int
    max_tokens: int
    max_prefill_tokens: int = 512
    max_inline_s: float = 1e-3


class Queue:
    """Four lines: one-pass work, sequences of several passes, prompts to continue, and search work behind them.

    Work whose client left or whose deadline passed is never taken; `take_overdue` gives the latter, to be answered.
    """

    def __init__(self, limits: QueueLimits, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limits, self._clock = limits, clock
        self._forward, self._sequences, self._search = Line[Work](), Line[SequenceWork](), Line[SharedWork]()
        self.prompts = Line[GenerateWork]()
        self._drain = DrainRate(3, clock)
        self._client_rows: Counter[str] = Counter()
        self._num_works = self.num_rows = self.num_tokens = 0
        self._overdue: list[Work] = []

    def __len__(self) -> int:
        return self._num_works

    @property
    def is_urgent(self) -> bool:
        """Whether more than search work waits."""
        return bool(self._forward or self._sequences or self.prompts)

    @property
    def is_one_pass(self) -> bool:
        """Whether nothing but one-pass work waits."""
        return not (self._search or self._sequences or self.prompts)

    @property
    def fraction(self) -> float:
        """How full it is by the limit that is closest, 0 to 1."""
        limits = self._limits
        return max(
            len(self) / limits.max_requests, self.num_rows / limits.max_rows, self.num_tokens / limits.max_tokens
        )

    @property
    def wait_s(self) -> float:
        """How long it takes until all that waits now has left."""
        return self._drain.seconds_for(_TOKENS, self.num_tokens) if len(self) else 0.0

    def put(self, works: Sequence[Work]) -> None:
        """Let the samples of one request in, all or none.

        Raises OverloadError naming the limit that is reached, LengthError if not even an empty queue has room.
        """
        self._check_room(works)
        if self._limits.max_client_rows is not None:
            self._check_client(works, self._limits.max_client_rows)
        if not self._num_works:
            self._drain.begin()
        for work in works:
            self._enter(work)

    def take(self, limits: Limits) -> list[Work]:
        """One batch of one-pass work."""
        return self._take_from(self._forward, limits)

    def take_sequences(self, max_count: int) -> list[SequenceWork]:
        """At most so many sequences of several passes."""
        return self._take_from(self._sequences, Limits(max_count, sys.maxsize)) if max_count else []

    def take_search(self, limits: Limits) -> list[SharedWork]:
        """One batch of search work."""
        return self._take_from(self._search, limits)

    def next_prompts(self, count: int) -> list[GenerateWork]:
        """The first prompts of the priority whose turn it is; they stay. Those that are over make way."""
        now = self._clock()
        first = self._first(self.prompts, now)
        if first is None:
            return []
        equals = takewhile(lambda work: work.terms.priority == first.terms.priority, self.prompts)
        return list(islice((work for work in equals if work.terms.deadline > now and not work.future.done()), count))

    def take_prompt(self, work: GenerateWork) -> None:
        """Let one of `prompts` go, usually but not always the first."""
        self.prompts.take(work)
        self._leave([work])

    def take_overdue(self) -> list[Work]:
        """What was found too late since the last time; it is the caller's to answer."""
        overdue, self._overdue = self._overdue, []
        return overdue

    def withdraw(self, works: Sequence[Work]) -> None:
        """Forget those of a request's samples that still wait: nobody wants their answers."""
        for work in works:
            if self._line_of(work).remove(work):
                self._subtract(work)

    def clear(self) -> list[Work]:
        """Take everything that waits; it is the caller's to answer."""
        works = [*self._forward, *self._sequences, *self.prompts, *self._search, *self._overdue]
        self._overdue = []
        self.withdraw(works)
        return works

    def _take_from(self, line: Line[_W], limits: Limits) -> list[_W]:
        taken: list[_W] = []
        rows = longest = 0
        now = self._clock()
        while (work := self._first(line, now)) is not None:
            rows += work.num_rows
            longest = max(longest, work.num_tokens // work.num_rows)
            if taken and (rows > limits.max_rows or rows * longest > limits.max_tokens):
                break
            line.take(work)
            taken.append(work)
        if taken:
            self._leave(taken)
        return taken

    def _first(self, line: Line[_W], now: float) -> _W | None:
        while (work := line.first()) is not None:
            is_overdue = work.terms.deadline <= now
            if not (is_overdue or work.future.done()):
                return work
            line.remove(work)
            self._subtract(work)
            if is_overdue:
                self._overdue.append(work)
        return None

    def _line_of(self, work: Work) -> Line[Work]:
        line = self._forward
        if isinstance(work, GenerateWork):
            line = self.prompts  # type: ignore[assignment]
        elif isinstance(work, SequenceWork) and work.num_left > work.max_chunk:
            line = self._sequences  # type: ignore[assignment]
        elif isinstance(work, SharedWork):
            line = self._search  # type: ignore[assignment]
        return line

    def _enter(self, work: Work) -> None:
        self._line_of(work).put(work)
        self._num_works += 1
        self.num_rows += work.num_rows
        self.num_tokens += work.num_tokens
        if self._limits.max_client_rows is not None:
            self._client_rows[work.terms.client] += work.num_rows

    def _leave(self, works: Sequence[Work]) -> None:
        rows, tokens = self.num_rows, self.num_tokens
        for work in works:
            self._subtract(work)
        self._drain.leave((len(works), rows - self.num_rows, tokens - self.num_tokens))

    def _subtract(self, work: Work) -> None:
        self._num_works -= 1
        self.num_rows -= work.num_rows
        self.num_tokens -= work.num_tokens
        if self._limits.max_client_rows is not None:
            client = work.terms.client
            self._client_rows[client] -= work.num_rows
            if not self._client_rows[client]:
                del self._client_rows[client]

    def _check_room(self, works: Sequence[Work]) -> None:
        limits = self._limits
        rows, tokens = sum([work.num_rows for work in works]), sum([work.num_tokens for work in works])
        for unit, name, waiting, wanted, limit in (
            (_SAMPLES, "samples", self._num_works, len(works), limits.max_requests),
            (_ROWS, "rows", self.num_rows, rows, limits.max_rows),
            (_TOKENS, "tokens", self.num_tokens, tokens, limits.max_tokens),
        ):
            if waiting + wanted <= limit:
                continue
            if wanted > limit:
                raise LengthError(
                    f"the request has {wanted} {name} and the queue takes at most {limit}; send it in several requests"
                )
            raise OverloadError(
                f"{waiting} {name} wait and {wanted} more would pass the limit of {limit}; come back later",
                self._drain.seconds_for(unit, waiting + wanted - limit),
                name,
            )

    def _check_client(self, works: Sequence[Work], limit: int) -> None:
        client, wanted = works[0].terms.client, sum(work.num_rows for work in works)
        waiting = self._client_rows[client]
        if wanted > limit:
            raise LengthError(
                f"the request has {wanted} rows and one client may have {limit} waiting; send it in several requests"
            )
        if waiting + wanted > limit:
            share = max(len(self._client_rows), 1)  # of what leaves, this client's part
            raise OverloadError(
                f"client {client!r} has {waiting} rows waiting and {wanted} more would pass its limit of {limit}; "
                "come back later",
                self._drain.seconds_for(_ROWS, (waiting + wanted - limit) * share),
                "client",
            )
