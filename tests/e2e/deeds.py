"""What the clients of a soak do: each deed asks in one way and holds the answer against what was answered alone."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx
import pytest

MAX_TOKENS = 12
SHORT = {"max_new_tokens": MAX_TOKENS}
# Batches sum float32 in another order; an answer that hangs on less than this is no known answer.
TIE = 1e-3


@dataclass(frozen=True)
class Known:
    """What a model answers to one input along one chain when nothing else runs."""

    given: Any
    chain: list[int]
    answer: Any


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
