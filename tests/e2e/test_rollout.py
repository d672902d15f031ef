"""A real server at a steady rate while versions are published, switched and removed: not one request fails."""

import asyncio
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

RATE, ROW = 200.0, [0.0] * 64


def publish(repository: Path, version: str, **members: Any) -> None:
    """A new version of the digits model, visible once it is complete."""
    hidden = repository / f".digits-{version}"
    shutil.copytree(repository / "digits" / "1", hidden, copy_function=shutil.copyfile)
    manifest = json.loads((hidden / "manifest.json").read_text())
    (hidden / "manifest.json").write_text(json.dumps({**manifest, "version": version, **members}))
    hidden.rename(repository / "digits" / version)


def roll(repository: Path, client: httpx.Client) -> None:
    """What an operator does in a day, within seconds."""

    def wait_for(version: str, state: str) -> None:
        ends = time.monotonic() + 30
        while {one["version"]: one["state"] for one in client.get("/models/digits").json()}.get(version) != state:
            assert time.monotonic() < ends, client.get("/models/digits").text
            time.sleep(0.02)

    settings = repository / "digits" / "settings.json"
    publish(repository, "2")
    wait_for("2", "ready")
    settings.write_text(json.dumps({"labels": {"stable": "2"}, "limits": {"max_batch_rows": 32}}))
    publish(repository, "3")
    wait_for("3", "ready")
    settings.write_text(json.dumps({"labels": {"stable": "2", "canary": "3"}, "split": {"stable": 9, "canary": 1}}))
    time.sleep(0.5)
    settings.write_text(json.dumps({"labels": {"stable": "3"}}))
    wait_for("2", "available")
    shutil.rmtree(repository / "digits" / "2")
    publish(repository, "4", kind="poem")
    wait_for("4", "failed")
    client.post("/repository/reload").raise_for_status()
    shutil.rmtree(repository / "digits" / "4")
    publish(repository, "5")
    wait_for("5", "ready")


async def steadily(url: str, is_over: threading.Event) -> list[str]:
    """One request every 1 / RATE seconds, whatever became of those before: who answered, or what failed."""
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)

    async def ask(client: httpx.AsyncClient) -> str:
        try:
            answer = await client.post("/predict", json={"model": "digits", "inputs": [ROW]})
        except httpx.HTTPError as error:
            return repr(error)
        return str(answer.json()["version"]) if answer.status_code == 200 else answer.text

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        asking, due = [], time.perf_counter()
        while not is_over.is_set():
            asking.append(asyncio.create_task(ask(client)))
            due += 1 / RATE
            await asyncio.sleep(max(due - time.perf_counter(), 0))
        return await asyncio.gather(*asking)


def test_no_request_fails_while_versions_roll(
    start: Callable[..., AbstractContextManager[Any]], shipped_repository: Path, tmp_path: Path
) -> None:
    repository, is_over = tmp_path / "repository", threading.Event()
    shutil.copytree(shipped_repository / "digits", repository / "digits")
    answered: list[str] = []
    with start("--repository", str(repository), "--backend", "onnx", FATHOM_RELOAD_S="0.1") as server:
        load = threading.Thread(target=lambda: answered.extend(asyncio.run(steadily(server.url, is_over))))
        load.start()
        try:
            time.sleep(0.5)
            roll(repository, server.client)
        finally:
            is_over.set()
            load.join()
        counts = Counter(answered)
        assert len(answered) > RATE
        assert counts.keys() == {"1", "2", "3", "5"}, {said: count for said, count in counts.items() if len(said) > 1}
        assert server.metric("fathom_repository_reloads_total", outcome="failed") >= 1
