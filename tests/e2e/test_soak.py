"""Hours of everything at once: clients of every dialect, some rude, and a model that comes and goes.

Lasts FATHOM_SOAK_S seconds; `make soak` lets it run for an hour.
"""

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import models
from tests.e2e.deeds import MIX, SHORT, TIE, Client, Known, Soak, Tally

CHECKPOINTS = Path(models.__file__).parent / "checkpoints"
NUM_LAYERS = 12
NUM_CLIENTS = 16  # more than kinds of deeds: each kind is somebody's first
MIB = 1 << 20
# Few pages: they are all touched soon, and memory that grows after that is a leak; sequences make room for others.
KV_BYTES = str(16 * MIB)
# Connections that close while they are counted, and threads of pools that fill only when several things block at once.
SPARE_FILES, SPARE_THREADS = 4, 8


@dataclass(frozen=True)
class Rest:
    """A process at rest."""

    rss_bytes: int
    num_files: int
    num_threads: int
    num_pages_cached: float


@pytest.mark.timeout(0)  # it takes as long as it was told to
def test_everything_at_once_for_long_leaves_nothing_behind(start: Any, tmp_path: Path) -> None:
    seconds = float(os.environ.get("FATHOM_SOAK_S", "20"))
    with start("--backend", "onnx", FATHOM_MEMORY=str(tmp_path / "memory.db"), FATHOM_KV_BYTES=KV_BYTES) as server:
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
            client, deed = Client(soak, http, random.Random(seed * NUM_CLIENTS + number)), list(MIX)[number % len(MIX)]
            while time.monotonic() < ends:
                await deed(client)
                soak.tally.kinds[deed.__name__] += 1
                (deed,) = client.draw.choices(list(MIX), list(MIX.values()))

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
        _alone(server, "arith", one, _chain(draw, NUM_LAYERS), {**SHORT, "logprobs": 2})
        for one in draw.sample(prompts, 60)
    ]
    clear = [Known(one.given, one.chain, one.answer["text"]) for one in texts if _is_clear(one.answer)]
    assert len(clear) > 30
    vectors = [
        _alone(server, "arith", one, _chain(draw, NUM_LAYERS), {"mode": "embed"}) for one in draw.sample(prompts, 20)
    ]
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
    return Rest(
        _rss_bytes(server),
        len(list((folder / "fd").iterdir())),
        len(list((folder / "task").iterdir())),
        server.metric("fathom_kv_pages_cached"),
    )


def _rss_bytes(server: Any) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
