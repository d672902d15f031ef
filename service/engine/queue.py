"""The bounded line in front of a model: what may wait, in which order it leaves. Knows no thread and no backend."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.errors import OverloadError
from service.engine.shared import SharedWork
from service.engine.work import GenerateWork, Work


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
    """Three first-in-first-out lanes: one-pass work, search work behind it, and prompts to continue."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._forward: deque[Work] = deque()
        self._search: deque[Work] = deque()
        self.prompts: deque[GenerateWork] = deque()
        self.num_rows = self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._forward) + len(self._search) + len(self.prompts)

    def put(self, works: Sequence[Work], retry_after_s: float) -> None:
        """Let the samples of one request in, all or none. Raises OverloadError naming the limit that is reached."""
        self._check_room(works, retry_after_s)
        for work in works:
            self._enter(work)

    def take(self, limits: Limits) -> list[Work]:
        """One batch of one-pass work; search work only when nothing else of the kind waits."""
        return self._take_from(self._forward, limits) or self._take_from(self._search, limits)

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

    def _take_from(self, lane: deque[Work], limits: Limits) -> list[Work]:
        taken: list[Work] = []
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
        else:
            (self._search if isinstance(work, SharedWork) else self._forward).append(work)
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
            if waiting + wanted > limit:
                raise OverloadError(
                    f"{waiting} {unit} wait and {wanted} more would pass the limit of {limit}; come back later",
                    retry_after_s,
                )
