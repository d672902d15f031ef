"""/cola/jobs: searches that outlive their client, and leave nothing behind however they end."""

import asyncio
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cola.mcts import Search
from service.engine.prefix import PrefixCache

# More chains than any test waits for: three layers give half a million up to this length.
ENDLESS = {"space": {"max_length": 12}, "budget": {"simulations": 100_000}, "max_new_tokens": 4}
SHORT = {"budget": {"simulations": 40}, "max_new_tokens": 4}


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "jobs.db")


@pytest.fixture
def working(serve: Any, place: str) -> Iterator[Any]:
    """A server of the tiny models with a database of its own."""
    with serve(memory=place, max_jobs_queued=2, max_jobs_running=2) as served:
        yield served


def submit(served: Any, **fields: Any) -> str:
    """The id of a new job."""
    response = served.post("/cola/jobs", **{"model": "tinylm", "input": "12+7=", **fields})
    assert response.status_code == 202, response.text
    job = response.json()
    assert job["state"] == "queued"
    assert response.headers["location"] == f"/cola/jobs/{job['id']}"
    return str(job["id"])


def look(served: Any, identifier: str) -> Any:
    response = served.client.get(f"/cola/jobs/{identifier}")
    assert response.status_code == 200, response.text
    return response.json()


def until(served: Any, identifier: str, *states: str) -> Any:
    """The job once it is in one of the states."""
    end = time.monotonic() + 60
    while (job := look(served, identifier))["state"] not in states:
        assert time.monotonic() < end, job
        time.sleep(0.02)
    return job


def watched(served: Any, identifier: str) -> list[tuple[str, Any]]:
    """Every event of a job, to its end."""
    with served.client.stream("GET", f"/cola/jobs/{identifier}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return _events(response.read().decode())


def _events(text: str) -> list[tuple[str, Any]]:
    pairs = [event.split("\ndata: ") for event in text.removeprefix("event: ").split("\n\nevent: ")]
    return [(name, json.loads(data)) for name, data in pairs]


def test_a_job_finds_what_the_same_search_finds(working: Any) -> None:
    job = until(working, submit(working, **SHORT), "done")
    direct = working.post("/cola/search", model="tinylm", input="12+7=", **SHORT).json()
    for name in ("best", "full", "pareto", "space", "mcts", "model", "version"):
        assert job["result"][name] == direct[name]
    progress = job["progress"]
    assert (progress["samples"], progress["samples_done"], progress["simulations"]) == (1, 1, 40)
    assert progress["layer_evaluations"] == job["result"]["stats"]["layer_evaluations"]
    assert progress["latest"]["pareto"]
    assert job["created"] <= job["started"] <= job["ended"]


def test_a_job_of_several_samples_answers_all(working: Any) -> None:
    inputs = [f"{number}+1=" for number in range(20)]
    job = until(working, submit(working, input=None, inputs=inputs, **SHORT), "done")
    assert len(job["result"]["results"]) == job["progress"]["samples_done"] == 20
    assert job["progress"]["simulations"] == 20 * 40


def test_a_job_waits_for_room_in_the_queue_where_a_request_would_be_refused(serve: Any, place: str) -> None:
    inputs = [f"{number}+1=" for number in range(4)]
    with serve(memory=place, max_queue_requests=1) as served:
        refused = served.post("/cola/search", model="tinylm", inputs=inputs, **SHORT)
        assert refused.status_code == 429
        until(served, submit(served, input=None, inputs=inputs, **SHORT), "done")


def test_a_job_larger_than_the_queue_fails_instead_of_waiting_forever(serve: Any, place: str) -> None:
    with serve(memory=place, max_queue_rows=1) as served:
        assert "at most 1" in until(served, submit(served, **SHORT), "failed")["reason"]


def test_a_job_remembers_when_asked(working: Any) -> None:
    job = until(working, submit(working, remember=True, **SHORT), "done")
    (kept,) = working.client.get("/cola/chains").json()["chains"]
    assert kept["id"] == job["result"]["remembered"]
    (output,) = working.predict("tinylm", ["12+7="], chain="memory")["outputs"]
    assert output["chain"] == job["result"]["best"]["chain"]


def test_events_tell_progress_to_many_and_the_result_last(working: Any) -> None:
    identifier = submit(working, **{**SHORT, "budget": {"simulations": 400}, "space": {"max_length": 12}})
    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(lambda _: watched(working, identifier), range(3)))
    for events in told:
        assert {name for name, _ in events[:-1]} <= {"progress"}
        assert events[-1] == ("result", look(working, identifier)["result"])
        simulations = [data["simulations"] for _, data in events[:-1]]
        assert simulations == sorted(simulations)
    assert watched(working, identifier) == told[0][-1:]


def test_a_watcher_that_leaves_does_not_stop_the_job(working: Any) -> None:
    identifier = submit(working, **ENDLESS)
    with working.client.stream("GET", f"/cola/jobs/{identifier}/events") as response:
        next(response.iter_lines())
    before = until(working, identifier, "running")["progress"]["simulations"]
    end = time.monotonic() + 30
    while look(working, identifier)["progress"]["simulations"] <= before:
        assert time.monotonic() < end
    working.client.delete(f"/cola/jobs/{identifier}")
    assert watched(working, identifier)[-1][0] == "cancelled"


def test_a_full_queue_refuses_and_says_when_to_return(working: Any, problem: Callable[..., Any]) -> None:
    made = [submit(working, **ENDLESS) for _ in range(4)]
    for identifier in made[:2]:
        until(working, identifier, "running")
    assert [look(working, identifier)["state"] for identifier in made[2:]] == ["queued"] * 2
    assert (working.metric("fathom_jobs_running"), working.metric("fathom_jobs_queued")) == (2, 2)
    refused = working.post("/cola/jobs", model="tinylm", input="1+1=")
    problem(refused, 429, "4 jobs wait or run")
    assert int(refused.headers["retry-after"]) >= 1
    for identifier in made[::-1]:
        assert working.client.delete(f"/cola/jobs/{identifier}").json()["state"] == "cancelled"
    assert (working.metric("fathom_jobs_running"), working.metric("fathom_jobs_queued")) == (0, 0)
    assert working.metric("fathom_jobs_total", outcome="cancelled") == 4
    until(working, submit(working, **SHORT), "done")


def test_jobs_are_listed_newest_first_by_page(working: Any) -> None:
    made = []
    for _ in range(3):
        made.append(submit(working, **SHORT))
        until(working, made[-1], "done")
    first = working.client.get("/cola/jobs", params={"limit": 2}).json()
    second = working.client.get("/cola/jobs", params={"limit": 2, "cursor": first["next"]}).json()
    assert [job["id"] for job in (*first["jobs"], *second["jobs"])] == made[::-1]
    assert second["next"] is None
    assert {job["result"] for job in first["jobs"]} == {None}


def test_what_cannot_be_searched_is_refused_before_it_waits(working: Any, problem: Callable[..., Any]) -> None:
    body = {"model": "tinylm", "input": "12+7="}
    problem(working.post("/cola/jobs", **{**body, "model": "nosuch"}), 404, "nosuch")
    problem(working.post("/cola/jobs", **body, space={"min_length": 5, "max_length": 4}), 422, "min_length")
    problem(working.post("/cola/jobs", **body, inputs=["1+1="]), 422, "either 'input' or 'inputs'")
    problem(working.post("/cola/jobs", **body, stream=True), 422, "/cola/jobs/{id}/events")
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        problem(working.client.request(method, f"/cola/jobs/nosuch{path}"), 404, "nosuch")
    assert working.client.get("/cola/jobs").json() == {"jobs": [], "next": None}


def test_a_job_that_fails_says_why_in_its_state_and_in_its_last_event(working: Any) -> None:
    identifier = submit(working, target=["no text"])
    job = until(working, identifier, "failed")
    assert job["result"] is None
    assert job["reason"]
    name, told = watched(working, identifier)[-1]
    assert (name, told["detail"]) == ("problem", job["reason"])


def test_fifty_searches_and_jobs_with_random_cancels_leave_nothing_behind(
    serve: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    for kind in (PrefixCache, Search):
        _note_births(monkeypatch, kind, alive)
    before = set(threading.enumerate())  # servers that other tests of this process have open
    dice = random.Random(0)
    with serve(memory=place, max_jobs_queued=50, max_jobs_running=8) as served:
        served.app.add_api_route("/tasks", _num_tasks)
        num_tasks = served.client.get("/tasks").json()
        waits = [dice.uniform(0, 0.5) for _ in range(50)]
        with ThreadPoolExecutor(50) as threads:
            list(threads.map(lambda place: _come_and_go(served, place % 3, waits[place]), range(50)))
        assert served.predict("tinylm", ["12+7="])["outputs"]
        end = time.monotonic() + 30
        while alive or served.client.get("/tasks").json() > num_tasks:
            assert time.monotonic() < end, (list(alive), served.client.get("/tasks").json(), num_tasks)
            time.sleep(0.05)
            gc.collect()
        for name in ("kv_pages_used", "queue_requests", "queue_rows", "queue_tokens", "running_sequences"):
            assert served.metric(f"fathom_{name}") == 0, name
        assert served.metric("fathom_jobs_running") == served.metric("fathom_jobs_queued") == 0
        states = {job["state"] for job in served.client.get("/cola/jobs").json()["jobs"]}
        assert states == {"cancelled"}
    for thread in [one for one in set(threading.enumerate()) - before if one.name.startswith("fathom-")]:
        thread.join(5)  # one that has been told to end may need a moment
        assert not thread.is_alive()


def test_a_restart_after_a_crash_says_interrupted(tiny_repository: Path, place: str) -> None:
    with _process(tiny_repository, place) as (client, process):
        identifiers = [_submit(client) for _ in range(3)]
        while client.get(f"/cola/jobs/{identifiers[0]}").json()["state"] != "running":
            time.sleep(0.05)
        process.kill()
        process.wait()
    with _process(tiny_repository, place) as (client, _):
        jobs = [client.get(f"/cola/jobs/{identifier}").json() for identifier in identifiers]
        assert [(job["state"], job["result"]) for job in jobs] == [("interrupted", None)] * 3


def test_a_server_told_to_stop_interrupts_its_jobs_tells_their_watchers_and_exits_with_0(
    tiny_repository: Path, place: str
) -> None:
    with _process(tiny_repository, place) as (client, process):
        identifier = _submit(client)
        with client.stream("GET", f"/cola/jobs/{identifier}/events") as response:
            lines = response.iter_lines()
            next(lines)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            names = [line for line in lines if line.startswith("event: ")]
        assert names[-1] == "event: interrupted"
        assert process.wait(60) == 0
        assert time.monotonic() - started < 25  # it waited for no search: those accepted have 30 s
    with _process(tiny_repository, place) as (client, _):
        job = client.get(f"/cola/jobs/{identifier}").json()
        assert (job["state"], job["reason"]) == ("interrupted", "the server was told to stop; submit it again")


def _come_and_go(served: Any, kind: int, wait_s: float) -> None:
    """Begin a search, a streamed search or a job, and leave or cancel it after a while."""
    body = {"model": "tinylm", "input": "12+7=", **ENDLESS}
    with httpx.Client(base_url=served.client.base_url, timeout=60) as client:
        if kind == 0:
            identifier = client.post("/cola/jobs", json=body).json()["id"]
            time.sleep(wait_s)
            assert client.delete(f"/cola/jobs/{identifier}").json()["state"] == "cancelled"
        elif kind == 1:
            with client.stream("POST", "/cola/search", json={**body, "stream": True}) as response:
                next(response.iter_lines())
                time.sleep(wait_s)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/cola/search", json=body, timeout=httpx.Timeout(60, read=0.1 + wait_s))


def _note_births(monkeypatch: pytest.MonkeyPatch, kind: type[Any], alive: "weakref.WeakSet[Any]") -> None:
    plain = kind.__init__

    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        plain(self, *arguments, **named)
        alive.add(self)

    monkeypatch.setattr(kind, "__init__", noting)


async def _num_tasks() -> int:
    """Tasks of the server's event loop, those of the request that asks among them."""
    return len(asyncio.all_tasks())


def _submit(client: httpx.Client) -> str:
    response = client.post("/cola/jobs", json={"model": "tinylm", "input": "12+7=", **ENDLESS})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


@contextmanager
def _process(repository: Path, place: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A server in a process of its own, once it is ready."""
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve", "--backend", "fake"]
    environment = {**os.environ, "FATHOM_MEMORY": place, "FATHOM_REPOSITORY": str(repository), "FATHOM_PORT": "0"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        address = next(json.loads(line)["address"] for line in process.stderr if '"listening"' in line)
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
                while client.get("/health/ready").status_code != 200:
                    time.sleep(0.05)
                yield client, process
        finally:
            process.kill()
            process.wait()
            reader.join()
