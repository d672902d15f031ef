"""Long searches in the background: submitted, watched by many, cancelled, and never lost silently. Never sees HTTP.

The truth about a job is its row. Its owner, the process that runs it, renews a lease on the row every second; a job
whose owner is gone is interrupted. Nobody but its owner ever says that a job is done.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

from models.errors import FathomError, NotFoundError, OverloadError, UnavailableError
from service.cola.database import Database
from service.cola.memory import Cursor
from service.lifecycle import Lifecycle
from service.metrics import Metrics

State: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
Json: TypeAlias = Mapping[str, Any]
Report: TypeAlias = Callable[[Json], None]
Work: TypeAlias = Callable[[Report], Awaitable[Json]]

UNFINISHED = ("queued", "running")
_log = logging.getLogger("fathom.jobs")
_BEAT_S = 1.0
# Far more than a beat: a database may be away for a while, and clocks of several machines differ.
_LEASE_S = 15.0
_RETRY_AFTER_S = 10.0
_LOST = "the server that ran it ended; submit it again"


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its watchers see it. Times are seconds since 1970; `reason` says why it did not get done."""

    id: str
    model: str
    version: str
    created: float
    progress: Json
    state: State = "queued"
    started: float | None = None
    ended: float | None = None
    result: Json | None = None
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return self.state not in UNFINISHED


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How many jobs may wait, run and stay after their end."""

    max_queued: int
    max_running: int
    max_kept: int


@dataclass(slots=True, eq=False)
class _Live:
    """A job of this process, until its end is saved. `changed` is set, and replaced, when there is news."""

    job: Job
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, **news: Any) -> None:
        self.job = replace(self.job, **news)
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """The jobs of one process, and those of others that use the same database."""

    def __init__(self, database: Database, limits: JobLimits, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._database, self._limits, self._lifecycle, self._metrics = database, limits, lifecycle, metrics
        self._host = socket.gethostname()
        self._owner = f"{self._host}/{os.getpid()}/{uuid.uuid4().hex}"
        self._live: dict[str, _Live] = {}
        self._places = asyncio.Semaphore(limits.max_running)
        self._beating: asyncio.Task[None] | None = None
        metrics.watch_jobs(partial(self._count, "queued"), partial(self._count, "running"))

    async def recover(self) -> None:
        """Mark what an earlier process left unfinished as interrupted, if there can be such a thing."""
        if self._database.may_hold_something:
            with suppress(UnavailableError):  # the log has it, and whoever asks for a job hears it again
                await self._interrupt_lost()

    async def submit(self, model: str, version: str, progress: Json, work: Work) -> Job:
        """Queue `work`; it reports progress and returns the result, both as JSON.

        Raises OverloadError if too many wait, UnavailableError while draining or without a database.
        """
        self._check_room()
        live = _Live(Job(uuid.uuid4().hex, model, version, time.time(), progress))
        self._live[live.job.id] = live
        try:
            await self._database.run(lambda store: store.add_job(live.job, self._owner, time.time() + _LEASE_S))
        except BaseException:
            self._live.pop(live.job.id, None)
            raise
        if live.job.is_over:
            raise UnavailableError(live.job.reason)
        live.task = asyncio.create_task(self._run(live, work))
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat())
        return live.job

    async def get(self, identifier: str) -> Job:
        """One job. Raises NotFoundError."""
        if identifier in self._live:
            return self._live[identifier].job
        await self._interrupt_lost()
        job = await self._database.run(lambda store: store.job(identifier))
        if job is None:
            raise NotFoundError(f"there is no job {identifier!r}; GET /cola/jobs lists those there are")
        return job

    async def page(self, limit: int, before: Cursor | None = None) -> list[Job]:
        """Up to `limit` jobs, newest first, after `before`; without results."""
        await self._interrupt_lost()
        jobs = await self._database.run(lambda store: store.job_page(limit, before))
        return [replace(self._live[job.id].job, result=None) if job.id in self._live else job for job in jobs]

    async def watch(self, identifier: str) -> AsyncGenerator[Job]:
        """The job now, and whenever there is news, until it is over; a slow watcher sees the latest news only."""
        while True:
            live = self._live.get(identifier)
            changed = live.changed if live else None
            job = await self.get(identifier)
            yield job
            if job.is_over:
                return
            await (changed.wait() if changed else asyncio.sleep(_BEAT_S))

    async def cancel(self, identifier: str) -> Job:
        """Stop a job, wherever it runs; one that is over stays as it is. Raises NotFoundError."""
        live = self._live.get(identifier)
        if live and live.task:
            await self._end(live, "cancelled", "")
            return live.job
        await self._database.run(lambda store: store.cancel_job(identifier, time.time()))
        return await self.get(identifier)

    async def close(self) -> None:
        """Interrupt everything and say so in the database."""
        await self._interrupt()
        if self._beating:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    async def _run(self, live: _Live, work: Work) -> None:
        try:
            async with self._places:
                live.update(state="running", started=time.time())
                result = await work(lambda progress: live.update(progress=progress))
            live.update(state="done", result=result, ended=time.time())
        except FathomError as error:
            live.update(state="failed", reason=str(error), ended=time.time())
        except Exception:
            _log.exception("job %s failed", live.job.id)
            reason = "unforeseen error; the log has the rest under this job's id"
            live.update(state="failed", reason=reason, ended=time.time())
        await self._save(live)

    async def _end(self, live: _Live, state: State, reason: str) -> None:
        """Cancel a job's task, wait until it has let go of everything, and save what became of the job."""
        if live.task:
            live.task.cancel()
            await asyncio.wait([live.task])
        if not live.job.is_over:
            live.update(state=state, reason=reason, ended=time.time())
        await self._save(live)

    async def _interrupt(self) -> None:
        reason = "the server was told to stop; submit it again"
        await asyncio.gather(*(self._end(live, "interrupted", reason) for live in list(self._live.values())))

    async def _beat(self) -> None:
        """Renew leases, save progress and what could not be saved before, and stop when the server drains."""
        while self._live:
            await asyncio.sleep(_BEAT_S)
            if self._lifecycle.is_draining:
                await self._interrupt()
            await asyncio.gather(*(self._save(live) for live in list(self._live.values())))

    async def _save(self, live: _Live) -> None:
        job = live.job
        try:
            is_held = await self._database.run(lambda store: store.save_job(job, time.time() + _LEASE_S))
            if job.is_over:
                await self._database.run(lambda store: store.prune_jobs(self._limits.max_kept))
        except UnavailableError:
            return  # the next beat tries again
        if job.is_over:
            if self._live.pop(job.id, None):
                self._metrics.jobs.labels(job.state).inc()
        elif not is_held:
            await self._end(live, "cancelled", "")

    async def _interrupt_lost(self) -> None:
        now = time.time()
        is_lost = partial(self._is_lost, now)
        await self._database.run(lambda store: store.interrupt_lost(is_lost, now, _LOST))

    def _is_lost(self, now: float, owner: str, lease_until: float) -> bool:
        host, pid, _ = owner.rsplit("/", 2)
        if lease_until < now:
            return True
        return owner != self._owner and host == self._host and not _is_running(int(pid))

    def _check_room(self) -> None:
        if self._lifecycle.is_draining:
            raise UnavailableError("this server is shutting down; submit the job to another")
        limit = self._limits.max_running + self._limits.max_queued
        if len(self._live) >= limit:
            raise OverloadError(f"{len(self._live)} jobs wait or run and the limit is {limit}", _RETRY_AFTER_S)

    def _count(self, state: State) -> int:
        return sum(live.job.state == state for live in self._live.values())


def _is_running(pid: int) -> bool:
    """Whether another process of this machine has this number; a predecessor with our own is gone."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
