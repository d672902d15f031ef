"""Jobs: their states, their bounds, who may watch and cancel, and what remains of them when processes end."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError, NotFoundError, OverloadError, UnavailableError
from service.cola.database import Database
from service.cola.jobs import Job, JobLimits, Jobs, Report
from service.lifecycle import Lifecycle
from service.metrics import Metrics

LIMITS = JobLimits(max_queued=2, max_running=2, max_kept=3)
Open = Callable[[], Any]
Body = Callable[[Jobs], Coroutine[Any, Any, Any]]


class FakeWork:
    """Counts to `rounds` as fast as the loop goes, or for as long as it is not cancelled; then says so or fails."""

    def __init__(self, rounds: int | None = 3, error: Exception | None = None) -> None:
        self._rounds, self._error = rounds, error
        self.has_begun, self.has_ended = asyncio.Event(), False

    async def __call__(self, report: Report) -> dict[str, Any]:
        self.has_begun.set()
        done = 0
        try:
            while self._rounds is None or done < self._rounds:
                done += 1
                report({"rounds": done})
                await asyncio.sleep(0.001)
            if self._error:
                raise self._error
            return {"answer": done}
        finally:
            self.has_ended = True


@asynccontextmanager
async def _jobs(
    database: Database, limits: JobLimits = LIMITS, lifecycle: Lifecycle | None = None
) -> AsyncIterator[Jobs]:
    jobs = Jobs(database, limits, lifecycle or Lifecycle(), Metrics())
    try:
        yield jobs
    finally:
        await jobs.close()


def run(opened: Open, body: Body, limits: JobLimits = LIMITS) -> None:
    """Run `body` on a new database; no task of the jobs may be left behind."""

    async def with_jobs() -> None:
        async with opened() as database:
            async with _jobs(database, limits) as jobs:
                await body(jobs)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(with_jobs())


def submit(jobs: Jobs, work: FakeWork) -> Coroutine[Any, Any, Job]:
    return jobs.submit("arith", "1", {"rounds": 0}, work)


async def until_over(jobs: Jobs, identifier: str) -> Job:
    return [job async for job in jobs.watch(identifier)][-1]


def test_a_job_waits_runs_and_is_done(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        job = await submit(jobs, FakeWork(rounds=3))
        assert (job.state, job.model, job.version, job.progress) == ("queued", "arith", "1", {"rounds": 0})
        seen = [one async for one in jobs.watch(job.id)]
        states = [one.state for one in seen]
        assert states == sorted(states, key=("queued", "running", "done").index)
        assert states[-1] == "done"
        rounds = [one.progress["rounds"] for one in seen]
        assert rounds == sorted(rounds)
        assert (seen[-1].result, seen[-1].reason, rounds[-1]) == ({"answer": 3}, "", 3)
        while jobs._live:
            await asyncio.sleep(0.01)
        kept = await jobs.get(job.id)
        assert kept == seen[-1]
        assert job.created <= kept.started <= kept.ended  # type: ignore[operator]
        assert [one.result for one in await jobs.page(10)] == [None]

    run(opened, body)


def test_many_watch_one_job_and_one_that_leaves_hurts_nobody(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        work = FakeWork(rounds=100)
        job = await submit(jobs, work)
        watchers = [asyncio.ensure_future(until_over(jobs, job.id)) for _ in range(5)]
        await work.has_begun.wait()
        watchers[0].cancel()
        async for seen in jobs.watch(job.id):
            if seen.state == "running":
                break
        ends = await asyncio.gather(*watchers[1:])
        assert {end.state for end in ends} == {"done"}

    run(opened, body)


def test_one_more_than_may_wait_is_refused_and_no_more_run_than_may(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        works = [FakeWork(rounds=None) for _ in range(4)]
        submitted = [await submit(jobs, work) for work in works]
        await asyncio.gather(works[0].has_begun.wait(), works[1].has_begun.wait())
        with pytest.raises(OverloadError, match="4 jobs wait or run and the limit is 4") as caught:
            await submit(jobs, FakeWork())
        assert caught.value.retry_after_s >= 1
        assert [work.has_begun.is_set() for work in works] == [True, True, False, False]
        await jobs.cancel(submitted[0].id)
        await works[2].has_begun.wait()
        last = await submit(jobs, FakeWork())
        assert (await jobs.get(last.id)).state == "queued"

    run(opened, body)


def test_cancelling_ends_the_work_at_once_and_twice_is_no_error(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        works = [FakeWork(rounds=None) for _ in range(3)]
        submitted = [await submit(jobs, work) for work in works]
        await works[1].has_begun.wait()
        for job, work, began in reversed(list(zip(submitted, works, (True, True, False), strict=True))):
            assert (await jobs.cancel(job.id)).state == "cancelled"
            assert work.has_ended == began
            assert (await jobs.cancel(job.id)).state == "cancelled"
        assert jobs._live == {}
        done = await submit(jobs, FakeWork())
        await until_over(jobs, done.id)
        assert (await jobs.cancel(done.id)).state == "done"
        with pytest.raises(NotFoundError, match="there is no job 'nosuch'"):
            await jobs.cancel("nosuch")

    run(opened, body)


def test_a_job_cancelled_before_its_first_step_never_runs(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        work = FakeWork()
        job = await submit(jobs, work)
        assert (await jobs.cancel(job.id)).state == "cancelled"
        assert not work.has_begun.is_set()

    run(opened, body)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(InputError("no such class"), "no such class"), (ZeroDivisionError("secret"), "unforeseen error; the log has")],
)
def test_a_failed_job_says_why(opened: Open, error: Exception, reason: str) -> None:
    async def body(jobs: Jobs) -> None:
        end = await until_over(jobs, (await submit(jobs, FakeWork(error=error))).id)
        assert (end.state, end.result) == ("failed", None)
        assert end.reason.startswith(reason)

    run(opened, body)


def test_only_the_newest_finished_jobs_are_kept(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        running = await submit(jobs, FakeWork(rounds=None))
        done = []
        for _ in range(5):
            done.append(await submit(jobs, FakeWork(rounds=1)))
            await until_over(jobs, done[-1].id)
            while done[-1].id in jobs._live:
                await asyncio.sleep(0.01)
        newest = [job.id for job in reversed(done[2:])]
        assert [job.id for job in await jobs.page(10)] == [*newest, running.id]
        first = await jobs.page(2)
        second = await jobs.page(2, (first[-1].created, first[-1].id))
        assert [job.id for job in (*first, *second)] == [*newest, running.id]

    run(opened, body)


def test_closing_interrupts_what_waits_and_runs_and_a_successor_sees_it(shared: str) -> None:
    async def body() -> None:
        database = Database(shared, Path("repository"))
        works = [FakeWork(rounds=None) for _ in range(3)]
        async with _jobs(database) as jobs:
            submitted = [await submit(jobs, work) for work in works]
            await works[1].has_begun.wait()
        await database.close()
        assert [work.has_ended for work in works] == [True, True, False]
        after = Database(shared, Path("repository"))
        async with _jobs(after) as jobs:
            found = {job.id: (job.state, job.reason) for job in await jobs.page(10)}
        await after.close()
        told = ("interrupted", "the server was told to stop; submit it again")
        assert found == {job.id: told for job in submitted}

    asyncio.run(body())


def test_draining_interrupts_within_a_beat_and_refuses_new_jobs(opened: Open) -> None:
    async def body() -> None:
        lifecycle = Lifecycle()
        async with opened() as database, _jobs(database, lifecycle=lifecycle) as jobs:
            job = await submit(jobs, FakeWork(rounds=None))
            lifecycle.is_draining = True
            end = await asyncio.wait_for(until_over(jobs, job.id), 10)
            assert end.state == "interrupted"
            with pytest.raises(UnavailableError, match="shutting down"):
                await submit(jobs, FakeWork())

    asyncio.run(body())


def test_a_job_is_interrupted_once_its_process_is_gone_and_not_before(shared: str) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from service.cola.database import Database
from service.cola.jobs import JobLimits, Jobs
from service.lifecycle import Lifecycle
from service.metrics import Metrics

async def forever(report):
    await asyncio.sleep(3600)

async def main():
    jobs = Jobs(Database(sys.argv[1], Path("repository")), JobLimits(2, 2, 2), Lifecycle(), Metrics())
    print((await jobs.submit("arith", "1", {}, forever)).id, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code, shared], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        identifier = owner.stdout.readline().strip()

        async def look(database: Database) -> None:
            async with _jobs(database) as jobs:
                await jobs.recover()
                assert (await jobs.get(identifier)).state in ("queued", "running")
                owner.kill()
                owner.wait()
                job = await jobs.get(identifier)
                assert (job.state, job.result) == ("interrupted", None)
                assert job.reason == "the server that ran it ended; submit it again"

        asyncio.run(_with(Database(shared, Path("repository")), look))


def test_a_job_on_another_machine_is_interrupted_when_its_lease_ends(opened: Open) -> None:
    async def body(jobs: Jobs) -> None:
        for name, lease_until in (("fresh", time.time() + 60), ("stale", time.time() - 1)):
            job = Job(name, "arith", "1", 1.0, {})
            await jobs._database.run(lambda store, job=job, end=lease_until: store.add_job(job, "far/1/x", end))
        assert (await jobs.get("fresh")).state == "queued"
        assert (await jobs.get("stale")).state == "interrupted"

    run(opened, body)


def test_a_job_can_be_cancelled_from_another_process(shared: str) -> None:
    async def body() -> None:
        ours, theirs = (Database(shared, Path("repository")) for _ in range(2))
        async with _jobs(ours) as jobs, _jobs(theirs) as others:
            work = FakeWork(rounds=None)
            job = await submit(jobs, work)
            await work.has_begun.wait()
            assert (await others.cancel(job.id)).state == "cancelled"
            end = await asyncio.wait_for(until_over(jobs, job.id), 10)
            assert (end.state, work.has_ended) == ("cancelled", True)
        await asyncio.gather(ours.close(), theirs.close())

    asyncio.run(body())


def test_an_end_that_could_not_be_saved_is_saved_later(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(jobs: Jobs) -> None:
        work = FakeWork(rounds=None)
        job = await submit(jobs, work)
        await work.has_begun.wait()
        with monkeypatch.context() as away:
            away.setattr(jobs._database, "run", _away)
            work._rounds = 0
            end = await until_over(jobs, job.id)
            assert end.state == "done"
            assert await jobs.get(job.id) == end
        while jobs._live:
            await asyncio.sleep(0.05)
        assert await jobs.get(job.id) == end

    run(opened, body)


def test_a_job_that_could_not_be_written_down_is_refused_and_holds_no_place(tmp_path: Path) -> None:
    async def body() -> None:
        database = Database(str(tmp_path), tmp_path)
        async with _jobs(database) as jobs:
            for _ in range(10):
                with pytest.raises(UnavailableError, match="cannot be used"):
                    await submit(jobs, FakeWork())
            await jobs.recover()
        await database.close()

    asyncio.run(body())


def test_a_process_of_another_user_counts_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.cola import jobs

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert jobs._is_running(1)


async def _away(work: object) -> None:
    raise UnavailableError("the database is away")


async def _with(database: Database, body: Callable[[Database], Coroutine[Any, Any, None]]) -> None:
    try:
        await body(database)
    finally:
        await database.close()
