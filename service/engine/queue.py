"""The bounded line in front of a model: what may wait, in which order it leaves. Knows no thread and no backend."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from models.errors import LengthError, OverloadError
from service.engine.shared import SharedWork
from service.engine.work import GenerateWork, Work

_W = TypeVar("_W", bound=Work)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait, in units of work, rows and tokens; one more is refused at once."""

    max_requests: int
    max_rows: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch: rows, and tokens (padding included)."""

    max_rows: int
    max_tokens: int


class Queue:
    """Three first-in-first-out lanes: one-pass work, prompts to continue, and search work behind both."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._forward: deque[Work] = deque()
        self._search: deque[SharedWork] = deque()
        self.prompts: deque[GenerateWork] = deque()
        self.num_rows = self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._forward) + len(self._search) + len(self.prompts)

    def put(self, works: Sequence[Work], retry_after_s: float) -> None:
        """Let the samples of one request in, all or none.

        Raises OverloadError naming the limit that is reached, LengthError if not even an empty queue has room.
        """
        self._check_room(works, retry_after_s)
        for work in works:
            self._enter(work)

    @property
    def is_urgent(self) -> bool:
        """Whether more than search work waits."""
        return bool(self._forward or self.prompts)

    @property
    def is_one_pass(self) -> bool:
        """Whether nothing but one-pass work waits."""
        return not (self._search or self.prompts)

    def take(self, limits: Limits) -> list[Work]:
        """One batch of one-pass work."""
        return self._take_from(self._forward, limits)

    def take_search(self, limits: Limits) -> list[SharedWork]:
        """One batch of search work."""
        return self._take_from(self._search, limits)

    def take_prompt(self) -> GenerateWork:
        """The prompt that waited longest."""
        work = self.prompts.popleft()
        self._leave(work)
        return work

    def drop_abandoned(self) -> None:
        """Forget work whose client left."""
        for lane in self._lanes():
            for work in [work for work in lane if work.future.done()]:
                lane.remove(work)
                self._leave(work)

    def _take_from(self, lane: deque[_W], limits: Limits) -> list[_W]:
        taken: list[_W] = []
        rows = longest = 0
        while lane:
            rows += lane[0].num_rows
            longest = max(longest, lane[0].num_tokens // lane[0].num_rows)
            if taken and (rows > limits.max_rows or rows * longest > limits.max_tokens):
                break
            taken.append(lane.popleft())
            self._leave(taken[-1])
        return taken

    def _enter(self, work: Work) -> None:
        if isinstance(work, GenerateWork):
            self.prompts.append(work)
        elif isinstance(work, SharedWork):
            self._search.append(work)
        else:
            self._forward.append(work)
        self.num_rows += work.num_rows
        self.num_tokens += work.num_tokens

    def _leave(self, work: Work) -> None:
        self.num_rows -= work.num_rows
        self.num_tokens -= work.num_tokens

    def _lanes(self) -> Iterator[deque[Work]]:
        yield from (self._forward, self._search, self.prompts)  # type: ignore[misc]

    def _check_room(self, works: Sequence[Work], retry_after_s: float) -> None:
        rows, tokens = sum(work.num_rows for work in works), sum(work.num_tokens for work in works)
        for unit, waiting, wanted, limit in (
            ("samples", len(self), len(works), self._limits.max_requests),
            ("rows", self.num_rows, rows, self._limits.max_rows),
            ("tokens", self.num_tokens, tokens, self._limits.max_tokens),
        ):
            if wanted > limit:
                raise LengthError(
                    f"the request has {wanted} {unit} and the queue takes at most {limit}; send it in several requests"
                )
            if waiting + wanted > limit:
                raise OverloadError(
                    f"{waiting} {unit} wait and {wanted} more would pass the limit of {limit}; come back later",
                    retry_after_s,
                )
