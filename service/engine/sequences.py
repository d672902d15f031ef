"""The sequences that are being generated: who joins, who makes room, and who reads how much in a step. No tensors."""

from collections.abc import Iterable, Iterator, Sequence

from models.errors import LengthError
from service.engine.admission import Admission
from service.engine.plan import plan
from service.engine.queue import Limits
from service.engine.tables import Table, Tables
from service.engine.work import GenerateWork, Work


class Sequences:
    """Those that run, oldest first, and those that made room for older ones and come back before anybody new."""

    def __init__(self, tables: Tables, limits: Limits, admission: Admission) -> None:
        self.tables, self._limits, self._admission = tables, limits, admission
        self.running: list[GenerateWork] = []
        self.preempted: list[GenerateWork] = []
        # Pieces of prompts end with a page, so that what others share is either read or left alone, never both.
        self._piece = max(limits.max_prefill_tokens // tables.page_size, 1) * tables.page_size
        self._num_admitted = 0
        self._calls: list[int] | None = None
        self._rows: list[GenerateWork] | None = None

    def __len__(self) -> int:
        return len(self.running) + len(self.preempted)

    def __iter__(self) -> Iterator[GenerateWork]:
        return iter([*self.running, *self.preempted])

    def refuse_oversized(self, works: Iterable[Work]) -> None:
        """Raise LengthError for a sequence that not even all pages could hold."""
        for work in works:
            if isinstance(work, GenerateWork):
                self._refuse_oversized(work)

    @property
    def has_room(self) -> bool:
        """Whether a row is free and nobody who made room waits for it."""
        return not self.preempted and len(self.running) < self._limits.max_rows

    def resume(self) -> None:
        """Let those who made room run again, oldest first, as far as there are rows and pages."""
        while self.preempted and len(self.running) < self._limits.max_rows and self._run(self.preempted[0]):
            self.preempted.pop(0)

    def admit_from(self, waiting: Iterable[GenerateWork]) -> GenerateWork | None:
        """Let one more sequence run if there are a row and pages for it; it is not taken out of `waiting`."""
        chosen = self._admission.choose(waiting, self._layer_calls()) if self.has_room else None
        if chosen is None:
            return None
        chosen.place = self._num_admitted
        if not self._run(chosen):
            return None
        self._num_admitted += 1
        self._admission.admitted(chosen, waiting)
        chosen.num_cached = chosen.num_read
        return chosen

    def release(self, work: GenerateWork) -> None:
        """Let a sequence go, finished or not, and give its pages back."""
        if work in self.preempted:
            self.preempted.remove(work)
        else:
            self._stop(work)

    def forget(self) -> None:
        """What was kept of everyone is lost; nobody may hold a page any more."""
        assert not len(self)
        self.tables = Tables(self.tables.pages.anew(), self.tables.page_size)

    def next_prefills(self) -> list[list[GenerateWork]]:
        """Batches that read prompts: a piece of the oldest long one, and as many short ones as are read together."""
        reading = [work for work in self.running if not work.is_decoding]
        long = [work for work in reading if work.num_left > self._piece]
        short = self._within_tokens([work for work in reading if work not in long])
        return [works for works in (long[:1], short) if works]

    def num_next(self, work: GenerateWork) -> int:
        """Tokens the next pass of a sequence reads: all that are left, or a piece of whole pages."""
        return min(work.num_left, self._piece)

    def next_decodes(self) -> list[GenerateWork]:
        """Who reads its newest token, rows of equal chains side by side. The youngest make room if pages run out."""
        for work in list(self.running):
            while work.table and work.is_decoding and not self.tables.grow(work.table, len(work.tokens)):
                self._preempt(self.running[-1])
        if self._rows is None:
            self._rows = sorted(self.running, key=lambda work: work.chain)
        return [work for work in self._rows if work.is_decoding]

    def publish(self, work: GenerateWork) -> None:
        """Share the pages a sequence filled. Only once it got a token: nothing it read was at fault then."""
        assert work.table
        if work.num_read // self.tables.page_size > work.table.num_published:
            self.tables.publish(work.table, work.tokens, work.num_read)

    def _run(self, work: GenerateWork) -> bool:
        table = self._open(work)
        if table is None:
            return False
        work.table, work.num_read = table, table.num_found * self.tables.page_size
        self.running.append(work)
        self.running.sort(key=lambda one: one.place)
        self._calls = self._rows = None
        return True

    def _open(self, work: GenerateWork) -> Table | None:
        # Everyone who runs can grow by a page per visit before anybody has to make room.
        running = [one.chain for one in self.running]
        return self.tables.open(work.tokens, work.chain, work.max_read, running)

    def _stop(self, work: GenerateWork) -> None:
        assert work.table
        self.running.remove(work)
        self.tables.close(work.table)
        work.table = None
        self._calls = self._rows = None

    def _preempt(self, work: GenerateWork) -> None:
        self._stop(work)
        work.num_preemptions += 1
        self.preempted.append(work)
        self.preempted.sort(key=lambda one: one.place)

    def _layer_calls(self) -> Sequence[int]:
        if self._calls is None:
            self._calls = [group.layer for group in plan(tuple(sorted({work.chain for work in self.running})))]
        return self._calls

    def _within_tokens(self, works: list[GenerateWork]) -> list[GenerateWork]:
        longest = 0
        for count, work in enumerate(works):
            longest = max(longest, work.num_left)
            if count and longest * (count + 1) > self._piece:
                return works[:count]
        return works

    def _refuse_oversized(self, work: GenerateWork) -> None:
        lack = self.tables.pages.lack(self.tables.counts(work.chain, self.tables.columns(work.max_read)))
        if lack is not None:
            asked, limit = lack
            raise LengthError(
                f"{work.max_read} tokens along a chain of {len(work.chain)} visits take {asked} pages and there are "
                f"{limit}; shorten the prompt, the answer or the chain, or raise FATHOM_KV_BYTES"
            )
