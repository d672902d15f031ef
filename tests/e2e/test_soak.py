"""Hours of everything at once: clients of every dialect, some rude, and a model that comes and goes.

Lasts FATHOM_SOAK_S seconds; `make soak` lets it run for an hour.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

import models

CHECKPOINTS = Path(models.__file__).parent / "checkpoints"
NUM_LAYERS, NUM_CLIENTS, MAX_TOKENS = 12, 16, 12
SHORT = {"max_new_tokens": MAX_TOKENS}
# Batches sum float32 in another order; an answer that hangs on less than this is no known answer.
TIE = 1e-3
MIB = 1 << 20
# Connections that close while they are counted, and threads of pools that fill only when several things block at once.
SPARE_FILES, SPARE_THREADS = 4, 8


@dataclass(frozen=True)
class Known:
    """What a model answers to one input along one chain when nothing else runs."""

    given: Any
    chain: list[int]
    answer: Any


@dataclass(frozen=True)
class Rest:
    """A process at rest."""

    rss_bytes: int
    num_files: int
    num_threads: int


@dataclass
class Tally:
    """What became of the requests of the soak."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    num_answered: int = 0
    num_left: int = 0
    rss_mib: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Soak:
    """Everything a client of the mix needs."""

    texts: Sequence[Known]
    vectors: Sequence[Known]
    rows: Sequence[Known]
    search: tuple[dict[str, Any], Any]
    tally: Tally


@dataclass
class Client:
    """One of the clients: its connections and its dice."""

    soak: Soak
    http: httpx.AsyncClient
    draw: random.Random

    async def ask(
        self, path: str, body: Any, expected: Sequence[int] = (200,), headers: dict[str, str] | None = None
    ) -> Any:
        """The body of the answer to a request, or None unless it is 200; the status must be one of `expected`."""
        identifier = f"soak-{self.draw.getrandbits(64):x}"
        sent = {"content-type": "application/json", "x-request-id": identifier, **(headers or {})}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self.http.post(path, content=content, headers=sent)
        tally = self.soak.tally
        tally.num_answered += 1
        tally.statuses[response.status_code] += 1
        self.check(response.headers["x-request-id"] == identifier, f"{path}: the answer of another request")
        self.check(response.status_code in expected, f"{path}: {response.status_code} {response.text[:200]}")
        return response.json() if response.status_code == 200 and response.content else None

    def check(self, holds: bool, wrong: str) -> None:
        if not holds:
            self.soak.tally.wrong.append(wrong)

    @asynccontextmanager
    async def stream(self, known: Known) -> AsyncIterator[AsyncIterator[str]]:
        body = {"model": "arith", "inputs": [known.given], "chain": known.chain, "parameters": SHORT, "stream": True}
        async with self.http.stream("POST", "/predict", json=body) as response:
            self.check(response.status_code == 200, f"a stream: {response.status_code}")
            yield response.aiter_lines()


Deed: TypeAlias = Callable[[Client], Awaitable[None]]


async def _predict(client: Client, *, expected: Sequence[int] = (200,), **fields: Any) -> None:
    some = client.draw.choices(client.soak.texts, k=client.draw.randint(1, 4))
    body = {"model": "arith", "inputs": [one.given for one in some], "chain": [one.chain for one in some]}
    parameters = {**SHORT, "priority": client.draw.randint(0, 5), **fields}
    answer = await client.ask("/predict", {**body, "parameters": parameters}, expected)
    if answer:
        said = [output["text"] for output in answer["outputs"]]
        client.check(said == [one.answer for one in some], f"/predict: {some}: {said}")


async def _late(client: Client) -> None:
    await _predict(client, expected=(200, 504), timeout_s=client.draw.uniform(0.0005, 0.05))


async def _stream(client: Client) -> None:
    known = client.draw.choice(client.soak.texts)
    async with client.stream(known) as lines:
        told = [json.loads(line[6:]) async for line in lines if line.startswith("data: ")]
    client.soak.tally.num_answered += 1
    client.check(told[-1]["outputs"][0]["text"] == known.answer, f"a stream: {known}: {told[-1]}")
    pieces = "".join(one["text"] for one in told[:-1])
    client.check(known.answer.startswith(pieces), f"pieces of a stream: {known}: {pieces}")


async def _complete(client: Client) -> None:
    known = client.draw.choice(client.soak.texts)
    body = {"model": "arith", "prompt": known.given, "chain": known.chain, "temperature": 0, "max_tokens": MAX_TOKENS}
    said = (await client.ask("/v1/completions", body))["choices"][0]["text"]
    client.check(said == known.answer, f"/v1/completions: {known}: {said}")


async def _embed(client: Client) -> None:
    known = client.draw.choice(client.soak.vectors)
    body = {"model": "arith", "input": known.given, "chain": known.chain}
    said = (await client.ask("/v1/embeddings", body))["data"][0]["embedding"]
    client.check(said == pytest.approx(known.answer, abs=TIE), f"/v1/embeddings: {known.given} {known.chain}")


async def _generate(client: Client) -> None:
    known = client.draw.choice(client.soak.texts)
    parameters = {**SHORT, "chain": known.chain}
    answer = await client.ask("/v2/models/arith/generate", {"text_input": known.given, "parameters": parameters})
    client.check(answer["text_output"] == known.answer, f"/v2 generate: {known}: {answer}")


async def _rows(client: Client) -> None:
    """Of the model that comes and goes: 503 while it is not there."""
    known = client.draw.choice(client.soak.rows)
    body = {"model": "digits", "inputs": [known.given], "chain": known.chain}
    if answer := await client.ask("/predict", body, (200, 503)):
        said = answer["outputs"][0]["outputs"]["logits"]
        client.check(said == pytest.approx(known.answer, abs=TIE), f"digits along {known.chain}")


async def _instances(client: Client) -> None:
    known = client.draw.choice(client.soak.rows)
    body = {"instances": [known.given], "chain": known.chain}
    if answer := await client.ask("/v1/models/digits:predict", body, (200, 503)):
        client.check(answer["predictions"][0] == pytest.approx(known.answer, abs=TIE), f"instances: {known.chain}")


async def _tensors(client: Client) -> None:
    known = client.draw.choice(client.soak.rows)
    tensor = {"name": "features", "shape": [1, len(known.given)], "datatype": "FP32", "data": known.given}
    body = {"inputs": [tensor], "parameters": {"chain": known.chain}}
    if answer := await client.ask("/v2/models/digits/infer", body, (200, 503)):
        client.check(answer["outputs"][0]["data"] == pytest.approx(known.answer, abs=TIE), f"v2: {known.chain}")


async def _search(client: Client) -> None:
    body, best = client.soak.search
    said = (await client.ask("/cola/search", body))["best"]
    client.check((said["chain"], said["text"]) == best, f"/cola/search: {said}")


async def _garbage(client: Client) -> None:
    content = client.draw.choice(
        (b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"model": 1}', b'{"model": "absent", "inputs": [1]}')
    )
    path = client.draw.choice(("/predict", "/cola/search", "/cola/jobs", "/v1/completions", "/v1/embeddings"))
    kind = client.draw.choice(("application/json", "text/plain"))
    await client.ask(path, content, (400, 404, 415, 422), {"content-type": kind})


async def _leave(client: Client) -> None:
    """Hang up while the answer is being made."""
    known = client.draw.choice(client.soak.texts)
    body = {"model": "arith", "inputs": [known.given] * 8, "chain": known.chain}
    client.soak.tally.num_left += 1
    try:
        async with asyncio.timeout(client.draw.uniform(0, 0.1)):
            await client.http.post("/predict", json=body)
    except TimeoutError:
        pass


async def _leave_stream(client: Client) -> None:
    client.soak.tally.num_left += 1
    async with client.stream(client.draw.choice(client.soak.texts)) as lines:
        for _ in range(client.draw.randint(1, 6)):
            await anext(lines)


async def _reload(client: Client) -> None:
    await client.ask("/models/digits/unload", b"")
    await asyncio.sleep(client.draw.uniform(0, 0.2))
    await client.ask("/models/digits/load", b"")


MIX: dict[Deed, int] = {
    _predict: 24,
    _stream: 10,
    _complete: 10,
    _embed: 10,
    _generate: 10,
    _rows: 20,
    _instances: 10,
    _tensors: 10,
    _late: 10,
    _leave: 8,
    _leave_stream: 8,
    _garbage: 10,
    _search: 2,
    _reload: 1,
}


@pytest.mark.timeout(0)  # it takes as long as it was told to
def test_everything_at_once_for_long_leaves_nothing_behind(start: Any, tmp_path: Path) -> None:
    seconds = float(os.environ.get("FATHOM_SOAK_S", "20"))
    with start("--backend", "onnx", FATHOM_MEMORY=str(tmp_path / "memory.db")) as server:
        soak = Soak(*_known(server), _searched(server), Tally())
        before, rests = _num_requests(server), []
        for share, seed in ((0.2, 1), (0.4, 2), (0.4, 3)):
            asyncio.run(_mix(server, soak, share * seconds, seed))
            rests.append(_at_rest(server))
        tally, (warm, middle, end) = soak.tally, rests
        print(json.dumps({"kinds": tally.kinds, "statuses": tally.statuses, "rss_mib": tally.rss_mib}), *rests)
        assert tally.wrong == []
        assert all(tally.kinds[deed.__name__] for deed in MIX)
        assert tally.num_answered <= _num_requests(server) - before <= tally.num_answered + tally.num_left
        assert end.num_files <= warm.num_files + SPARE_FILES
        assert end.num_threads <= warm.num_threads + SPARE_THREADS
        assert end.rss_bytes - middle.rss_bytes < 64 * MIB
        server.process.terminate()
        assert server.process.wait(timeout=60) == 0


async def _mix(server: Any, soak: Soak, seconds: float, seed: int) -> None:
    ends = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:

        async def act(number: int) -> None:
            client = Client(soak, http, random.Random(seed * NUM_CLIENTS + number))
            while time.monotonic() < ends:
                (deed,) = client.draw.choices(list(MIX), list(MIX.values()))
                await deed(client)
                soak.tally.kinds[deed.__name__] += 1

        async def watch() -> None:
            while True:
                soak.tally.rss_mib.append(_rss_bytes(server) // MIB)
                await asyncio.sleep(max(1.0, seconds / 10))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(act, range(NUM_CLIENTS)))
        watching.cancel()


def _known(server: Any) -> tuple[list[Known], list[Known], list[Known]]:
    """Answers given alone: texts, embeddings, rows of digits."""
    draw = random.Random(0)
    prompts = [one["prompt"] for one in _heldout("arith")]
    rows = [one["inputs"] for one in _heldout("digits")]
    texts = [
        _alone(server, "arith", one, _chain(draw, 12), {**SHORT, "logprobs": 2}) for one in draw.sample(prompts, 60)
    ]
    clear = [Known(one.given, one.chain, one.answer["text"]) for one in texts if _is_clear(one.answer)]
    assert len(clear) > 30
    vectors = [_alone(server, "arith", one, _chain(draw, 12), {"mode": "embed"}) for one in draw.sample(prompts, 20)]
    logits = [
        _alone(server, "digits", one, _chain(draw, _layers(server, "digits")), {}) for one in draw.sample(rows, 20)
    ]
    return (
        clear,
        [Known(one.given, one.chain, one.answer["embedding"]) for one in vectors],
        [Known(one.given, one.chain, one.answer["outputs"]["logits"]) for one in logits],
    )


def _heldout(model: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CHECKPOINTS / model / "heldout.jsonl").read_text().splitlines()]


def _alone(server: Any, model: str, given: Any, chain: list[int], parameters: dict[str, Any]) -> Known:
    (answer,) = server.post("/predict", model=model, inputs=[given], chain=chain, parameters=parameters)["outputs"]
    return Known(given, chain, answer)


def _is_clear(answer: Any) -> bool:
    return all(one["top"][0]["logprob"] - one["top"][1]["logprob"] > TIE for one in answer["logprobs"])


def _layers(server: Any, model: str) -> int:
    return int(server.client.get(f"/models/{model}").json()[0]["num_layers"])


def _chain(draw: random.Random, num_layers: int) -> list[int]:
    return [draw.randrange(num_layers) for _ in range(draw.randint(1, num_layers + 6))]


def _searched(server: Any) -> tuple[dict[str, Any], Any]:
    body = {"model": "arith", "input": "48213+977=", "target": "49190", "budget": {"simulations": 24}, "seed": 3}
    best = server.post("/cola/search", **body)["best"]
    return body, (best["chain"], best["text"])


def _num_requests(server: Any) -> float:
    """Requests that were answered or left, but for those that this test asks itself."""
    own = sum(server.metric("fathom_requests_total", route=route) for route in ("/metrics", "/health/ready"))
    return float(server.metric("fathom_requests_total")) - own


def _at_rest(server: Any) -> Rest:
    """What the process holds when nobody asks for anything: no work, no page."""
    held = ("queue_requests", "queue_rows", "queue_tokens", "running_sequences", "kv_pages_used", "jobs_running")
    ends = time.monotonic() + 20
    while any(left := {name: server.metric(f"fathom_{name}") for name in held}.values()):
        assert time.monotonic() < ends, left
        time.sleep(0.05)
    time.sleep(0.5)  # connections are closed
    folder = Path(f"/proc/{server.process.pid}")
    return Rest(_rss_bytes(server), len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))


def _rss_bytes(server: Any) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
