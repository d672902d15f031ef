"""A server whose model is shared by ranks, over HTTP: whatever happens to a rank, no wrong answer and none lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.parallel.ranks import Ranks
from service.parallel.supervisor import Supervisor

PROMPTS = tuple(f"{left}+{right}=" for left, right in ((1, 2), (12, 34), (55, 44), (7, 8), (90, 9), (3, 5)))
READY_AGAIN_S = 10.0
# Who asks, of a request and its answer: what it said, or None for a 503 that says when to come back.
Ask = Callable[[httpx.Client, str], object]


def supervisor_of(server: Any) -> Supervisor:
    (entry,) = (one for (name, _), one in server.app.state.registry.states().items() if name == "tinylm")
    found: Supervisor = entry.engine._batcher._backend.supervisor
    return found


def wait_for(happens: Callable[[], bool], seconds: float) -> float:
    """Seconds until it happened."""
    started = time.monotonic()
    while not happens():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)
    return time.monotonic() - started


def ranks_of(server: Any) -> Ranks:
    """The ranks that are up, or will be."""
    supervisor = supervisor_of(server)
    wait_for(lambda: supervisor.ranks is not None, READY_AGAIN_S)
    found = supervisor.ranks
    assert found is not None
    return found


def is_ready(server: Any) -> bool:
    return bool(server.client.get("/health/ready").status_code == 200)


def said(response: httpx.Response) -> dict[str, Any] | None:
    """The answer, or None if the ranks are lost; nothing else may happen."""
    if response.status_code == 503:
        assert int(response.headers["retry-after"]) >= 1
        return None
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def predict(client: httpx.Client, prompt: str) -> object:
    answer = said(client.post("/predict", json={"model": "tinylm", "inputs": [prompt]}))
    return answer and answer["outputs"][0]["text"]


def complete(client: httpx.Client, prompt: str) -> object:
    answer = said(
        client.post("/v1/completions", json={"model": "tinylm", "prompt": prompt, "max_tokens": 12, "temperature": 0})
    )
    return answer and answer["choices"][0]["text"]


def generate(client: httpx.Client, prompt: str) -> object:
    answer = said(client.post("/v2/models/tinylm/generate", json={"text_input": prompt}))
    return answer and answer["text_output"]


def search(client: httpx.Client, prompt: str) -> object:
    body = {"model": "tinylm", "input": prompt, "budget": {"simulations": 12}, "seed": 1, "max_new_tokens": 4}
    answer = said(client.post("/cola/search", json=body))
    return answer and answer["best"]["chain"]


def stream(client: httpx.Client, prompt: str) -> object:
    """The text of an event stream; one that breaks off says when to come back in its last event."""
    body = {"model": "tinylm", "inputs": [prompt], "stream": True}
    with client.stream("POST", "/predict", json=body) as response:
        response.read()
    if response.status_code == 503:
        return said(response)
    events = [block.split("\n") for block in response.text.strip().split("\n\n")]
    name, data = events[-1][0].removeprefix("event: "), json.loads(events[-1][1].removeprefix("data: "))
    if name == "problem":
        assert (data["status"], data["retry_after_s"] >= 1) == (503, True)
        return None
    return data["outputs"][0]["text"] if "outputs" in data else data["text"]


ASKS: tuple[Ask, ...] = (predict, complete, generate, search, stream)


@dataclass
class Load:
    """Clients that never pause, each with a question of its own, and what they were told."""

    server: Any
    wanted: dict[tuple[Ask, str], object]
    answers: list[tuple[Ask, str, object]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    longest_s: float = 0.0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(len(ASKS))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Every request has ended, in the answer it should have or in a 503."""
        assert self.errors == []
        wrong = [one for one in self.answers if one[2] is not None and one[2] != self.wanted[one[:2]]]
        assert wrong == []

    def _ask(self, number: int) -> None:
        ask = ASKS[number]
        with httpx.Client(base_url=self.server.client.base_url, timeout=30) as client:
            while not self._is_over.is_set():
                for prompt in PROMPTS:
                    started = time.monotonic()
                    try:
                        self.answers.append((ask, prompt, ask(client, prompt)))
                    except BaseException as error:
                        self.errors.append(error)
                        return
                    self.longest_s = max(self.longest_s, time.monotonic() - started)


@pytest.fixture(scope="module")
def ranks_server(serve: Any) -> Iterator[Any]:
    """A server of its own, whose ranks are lost as soon as anybody's."""
    with serve(backend="eager", tensor_parallel=2) as served:
        yield served


@pytest.fixture(scope="module")
def wanted(ranks_server: Any) -> dict[tuple[Ask, str], object]:
    return {(ask, prompt): ask(ranks_server.client, prompt) for ask in ASKS for prompt in PROMPTS}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_is_lost_under_load(
    sent: signal.Signals, rank: int, ranks_server: Any, wanted: dict[tuple[Ask, str], object]
) -> None:
    ranks = ranks_of(ranks_server)
    losses = ranks_server.metric("fathom_ranks_lost_total")
    with Load(ranks_server, wanted) as load:
        wait_for(lambda: len({ask for ask, _, _ in load.answers}) == len(ASKS) or bool(load.errors), 30)
        started = time.monotonic()
        os.kill(ranks.processes[rank], sent)
        assert wait_for(lambda: not is_ready(ranks_server), 5) < 2.0
        assert predict(ranks_server.client, PROMPTS[0]) is None or is_ready(ranks_server)
        wait_for(lambda: is_ready(ranks_server), READY_AGAIN_S)
        assert time.monotonic() - started < READY_AGAIN_S
        count = len(load.answers)
        wait_for(lambda: {ask for ask, _, text in load.answers[count:] if text is not None} == {*ASKS}, 30)
    load.check()
    assert any(text is None for _, _, text in load.answers)
    assert ranks_server.metric("fathom_ranks_lost_total") == losses + 1
    assert ranks_server.metric("fathom_ranks_epoch") == ranks.epoch + 1


def test_model_says_that_it_is_not_there(ranks_server: Any, problem: Any) -> None:
    os.kill(ranks_of(ranks_server).processes[1], signal.SIGKILL)
    wait_for(lambda: not is_ready(ranks_server), 5)
    answer = ranks_server.post("/predict", model="tinylm", inputs=["1+1="])
    if not is_ready(ranks_server):
        assert problem(answer, 503, "lost its ranks")["retry_after_s"] >= 1
        assert ranks_server.client.get("/v2/models/tinylm/ready").status_code != 200
        (state,) = {one["state"] for one in ranks_server.client.get("/models").json() if one["name"] == "tinylm"}
        assert state == "loading"
    assert ranks_server.client.get("/health/live").status_code == 200
    wait_for(lambda: is_ready(ranks_server), READY_AGAIN_S)
    assert predict(ranks_server.client, "1+1=") is not None


def test_client_that_leaves_frees_what_its_sequence_held(ranks_server: Any) -> None:
    predict(ranks_server.client, PROMPTS[0])
    body = {"model": "tinylm", "inputs": ["1+2+3+4="], "stream": True, "parameters": {"max_new_tokens": 40}}
    for _ in range(10):
        with ranks_server.client.stream("POST", "/predict", json=body) as response:
            next(response.iter_lines())
    wait_for(lambda: ranks_server.metric("fathom_kv_pages_used") == 0, 10)
    wait_for(lambda: ranks_server.metric("fathom_ranks_carries") <= 1, 10)


def test_metrics_tell_of_ranks(ranks_server: Any) -> None:
    predict(ranks_server.client, PROMPTS[0])
    wait_for(lambda: ranks_server.metric("fathom_ranks_all_reduce_seconds") > 0, 10)
    assert ranks_server.metric("fathom_ranks_up", model="tinylm") == 1
    assert ranks_server.metric("fathom_model_ready", model="tinylm") == 1
    assert 0 <= ranks_server.metric("fathom_rank_heartbeat_age_seconds", rank="1") < 1.5
    assert ranks_server.metric("fathom_ranks_step_seconds_count") > 0
    assert ranks_server.metric("fathom_rank_wait_seconds_total", rank="0") > 0
    assert ranks_server.metric("fathom_ranks_start_seconds") > 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_server(sent: signal.Signals, tiny_repository: Path) -> None:
    """After SIGTERM ranks end in order; after SIGKILL of the server alone they end all the same."""
    settings = {"FATHOM_TENSOR_PARALLEL": "2", "FATHOM_REPOSITORY": str(tiny_repository), "FATHOM_WARM_UP": "false"}
    code = "from service.cli import main; import sys; sys.argv = ['fathom', 'serve', '--port', '0']; main()"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FATHOM_")}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env={**clean, **settings}, stderr=subprocess.PIPE, text=True) as server:
        processes = list(_told_processes(server))
        assert len(processes) == 2
        server.send_signal(sent)
        assert server.stderr is not None
        left = server.stderr.read()
        assert server.wait(30) == (0 if sent is signal.SIGTERM else -signal.SIGKILL)
        assert "lost its ranks" not in left
    wait_for(lambda: not any(_is_alive(process) for process in processes), 5)


def _told_processes(server: "subprocess.Popen[str]") -> Iterator[int]:
    assert server.stderr is not None
    for line in server.stderr:
        if "are up: processes" in line:
            yield from json.loads(line[line.rindex("[") : line.rindex("]") + 1])
        if "tinylm version 1 is ready" in line:
            return


def _is_alive(process: int) -> bool:
    """Whether it runs, and is more than the memory of one that nobody has waited for."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
