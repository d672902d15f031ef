"""/cola/jobs: searches that outlive the connection that asked for them."""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from models.errors import InputError
from service.api import cola, sse
from service.api.body import JsonRoute
from service.api.chains import check_remember, remembered
from service.api.constants import constants_of
from service.api.paging import After, Limit, next_cursor, read_cursor
from service.api.responses import PROBLEMS, STREAM
from service.api.searches import SearchRequest, SearchResult
from service.api.state import JobsState, MemoryState, RegistryState, SettingsState
from service.cola.jobs import Job, Jobs, Report
from service.cola.memory import Memory
from service.cola.task import Progress
from service.engine.terms import NUM_PRIORITIES, Terms, set_terms
from service.problems import problem
from service.registry import Registry
from service.repository.slots import Holding

router = APIRouter(prefix="/cola/jobs", route_class=JsonRoute, tags=["cola"], responses=PROBLEMS)


class JobProgress(BaseModel):
    """How far a job is; best, Pareto front and statistics are of the sample that reported last."""

    samples: int
    samples_done: int
    simulations: int = Field(description="of all samples so far")
    layer_evaluations: int = Field(description="of all samples so far")
    latest: dict[str, Any] | None = Field(None, description="place of the sample, its best chain, front and statistics")


class JobInfo(BaseModel):
    """One job. Times are seconds since 1970."""

    id: str
    model: str
    version: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    created: float
    started: float | None
    ended: float | None
    progress: JobProgress
    result: dict[str, Any] | None = Field(description="the answer of /cola/search once done; lists leave it out")
    reason: str = Field(description="why the job did not get done")


class JobsPage(BaseModel):
    """One page, newest first."""

    jobs: list[JobInfo]
    next: str | None = Field(description="cursor of the next page; null on the last")


@router.post("", status_code=202, response_model=JobInfo)
async def submit_job(
    body: SearchRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState, jobs: JobsState
) -> Response:
    """Queue a search and answer at once; Location is where to ask for it."""
    if body.stream:
        raise InputError("a job is watched at /cola/jobs/{id}/events; leave 'stream' out")
    engine = await registry.get(body.model, body.version)
    constants_of(body, engine)
    body = body.model_copy(update={"version": engine.manifest.version})
    work = _SearchWork(body, cola.samples_of(body, settings.max_inputs), registry, memory)
    await check_remember(body, memory)
    job = await jobs.submit(engine.manifest.name, engine.manifest.version, work.progress(), work)
    return Response(_json(job), 202, {"location": f"{router.prefix}/{job.id}"}, "application/json")


@router.get("")
async def list_jobs(jobs: JobsState, limit: Limit = 100, cursor: After = None) -> JobsPage:
    """All jobs, newest first, without their results."""
    page = await jobs.page(limit, read_cursor(cursor))
    return JobsPage(jobs=[_info(job) for job in page], next=next_cursor(page, limit))


@router.get("/{identifier}", response_model=JobInfo)
async def show_job(identifier: str, jobs: JobsState) -> Response:
    """One job: where it stands, the best so far, and the result once done."""
    return Response(_json(await jobs.get(identifier)), media_type="application/json")


@router.get("/{identifier}/events", response_class=Response, responses=STREAM)
async def watch_job(identifier: str, jobs: JobsState) -> Response:
    """Server-sent events: `progress` at once and at every news, at last `result`, `problem` or the final state."""
    return await sse.stream(_events(identifier, jobs))


@router.delete("/{identifier}", response_model=JobInfo)
async def cancel_job(identifier: str, jobs: JobsState) -> Response:
    """Cancel a job and free what it holds; one that is over stays as it is."""
    return Response(_json(await jobs.cancel(identifier)), media_type="application/json")


class _SearchWork:
    """The searches of one job, and the sum of what they report."""

    def __init__(
        self, body: SearchRequest, samples: list[tuple[object, object]], registry: Registry, memory: Memory
    ) -> None:
        self._body, self._samples, self._registry, self._memory = body, samples, registry, memory
        self._spent: dict[int, Mapping[str, Any]] = {}
        self._num_done = 0
        self._latest: dict[str, Any] | None = None

    async def __call__(self, report: Report) -> dict[str, Any]:
        set_terms(Terms(client="jobs", priority=NUM_PRIORITIES))  # a job outlives the request that submitted it
        with Holding():
            return await self._search(report)

    async def _search(self, report: Report) -> dict[str, Any]:
        # Looked up only now: the model may have been loaded anew while the job waited.
        engine = (await self._registry.get(self._body.model, self._body.version)).patient()

        async def one(place: int) -> SearchResult:
            async def listen(progress: Progress) -> None:
                self._note(place, cola.progress_json(progress))
                report(self.progress())

            result = await cola.run(self._body, engine, *self._samples[place], on_progress=listen)
            result = await remembered(result, self._body, engine, *self._samples[place], self._memory)
            self._spent[place] = result.stats.model_dump()
            self._num_done += 1
            report(self.progress())
            return result

        answer: dict[str, Any] = json.loads(
            cola.response(self._body, engine, await cola.run_all(one, len(self._samples)))
        )
        return answer

    def progress(self) -> dict[str, Any]:
        return {
            "samples": len(self._samples),
            "samples_done": self._num_done,
            "simulations": sum(one["simulations"] for one in self._spent.values()),
            "layer_evaluations": sum(one["layer_evaluations"] for one in self._spent.values()),
            "latest": self._latest,
        }

    def _note(self, place: int, progress: dict[str, Any]) -> None:
        self._spent[place] = progress["stats"]
        self._latest = {"sample": place, **progress}


async def _events(identifier: str, jobs: Jobs) -> AsyncGenerator[bytes]:
    async for job in jobs.watch(identifier):
        if not job.is_over:
            yield sse.event("progress", {"state": job.state, **job.progress})
        elif job.state == "done":
            yield sse.event("result", job.result)
        elif job.state == "failed":
            yield b"event: problem\ndata: " + bytes(problem(500, "The job failed", job.reason).body) + b"\n\n"
        else:
            yield sse.event(job.state, {"reason": job.reason, **job.progress})


def _info(job: Job) -> JobInfo:
    return JobInfo(**{name: getattr(job, name) for name in JobInfo.model_fields})


def _json(job: Job) -> bytes:
    return orjson.dumps({name: getattr(job, name) for name in JobInfo.model_fields})
