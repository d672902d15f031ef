"""What a request costs the server, beside a bare ASGI function, a naive FastAPI server and the raw runtime.

Measured: CPU milliseconds of the server process per request, the robust figure on a busy machine, and requests per
second. A perceptron of 64-256-256-10 as one ONNX graph, JSON bodies, keep-alive connections in a closed loop from
another process, one server at a time, alternating. Left out: binary bodies, other machines. A model's share of CPU
below 0.2 at 32 rows, or more CPU per request than the naive server, would mean that the engine is in the way.
"""

import asyncio
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import orjson
import torch
from peers import session_of
from report import report
from torch import nn

FATHOM = Path(sysconfig.get_path("scripts")) / "fathom"
CASES = ((1, 1), (64, 1), (8, 32))  # connections, rows of a request
SERVERS = ("fathom", "floor", "naive")
ROUNDS, SECONDS = 3, 2.0
TICKS = os.sysconf("SC_CLK_TCK")


def export(file: Path) -> None:
    """The perceptron, random weights, any number of rows."""
    torch.manual_seed(0)
    layers = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    rows = {"x": {0: torch.export.Dim("rows")}}
    model = nn.Sequential(*layers).eval()
    program = torch.onnx.export(
        model, (torch.zeros(2, 64),), input_names=["x"], output_names=["y"], dynamic_shapes=(rows["x"],), verbose=False
    )
    assert program is not None
    program.save(file)


@contextmanager
def serving(kind: str, file: Path, repository: Path) -> Iterator[tuple[int, int]]:
    """Process id and port of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    peer = [sys.executable, str(Path(__file__).parent / "peers.py"), kind, str(file), str(port)]
    ours = [str(FATHOM), "serve", "--repository", str(repository), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(ours if kind == "fathom" else peer, stderr=subprocess.DEVNULL) as process:
        try:
            until_ready(port)
            yield process.pid, port
        finally:
            process.terminate()


def until_ready(port: int) -> None:
    """Ask until a prediction is answered."""
    for _ in range(200):
        try:
            ask = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict", body(1), {"content-type": "application/json"}
            )
            urllib.request.urlopen(ask, timeout=5).read()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers on port {port}")


def body(rows: int) -> bytes:
    """A request; `model` is ignored by the peers."""
    inputs = np.random.default_rng(0).uniform(-1, 1, (rows, 64)).round(4).tolist()
    return orjson.dumps({"model": "mlp", "inputs": inputs})


def load(port: int, connections: int, rows: int) -> int:
    """Requests answered in SECONDS, by connections that each ask again as soon as they are answered."""
    content = body(rows)
    head = (
        f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    request = head.encode() + content

    async def connection(until: float) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.monotonic() < until:
            writer.write(request)
            headers = await reader.readuntil(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 200"), headers
            length = headers.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            count += 1
        writer.close()
        return count

    async def all_connections() -> int:
        until = time.monotonic() + SECONDS
        return sum(await asyncio.gather(*(connection(until) for _ in range(connections))))

    return asyncio.run(all_connections())


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def raw_ms(file: Path, rows: int) -> float:
    """CPU milliseconds of the runtime for `rows` rows, in this process."""
    session, inputs = session_of(str(file)), {"x": np.zeros((rows, 64), np.float32)}
    started, count = time.process_time(), 0
    while (spent := time.process_time() - started) < 0.5:
        session.run(None, inputs)
        count += 1
    return 1000 * spent / count


def measure(file: Path, repository: Path) -> list[dict[str, object]]:
    """One row for each case and server."""
    spent: dict[tuple[str, int, int], list[float]] = {}
    rates: dict[tuple[str, int, int], list[float]] = {}
    raw: dict[int, list[float]] = {}
    with get_context("spawn").Pool(1) as client:
        for _ in range(ROUNDS):
            for kind in SERVERS:
                with serving(kind, file, repository) as (pid, port):
                    client.apply(load, (port, 8, 1))  # warm
                    for connections, rows in CASES:
                        raw.setdefault(rows, []).append(raw_ms(file, rows))
                        before = cpu_s(pid)
                        count = client.apply(load, (port, connections, rows))
                        case = (kind, connections, rows)
                        spent.setdefault(case, []).append(1000 * (cpu_s(pid) - before) / count)
                        rates.setdefault(case, []).append(count / SECONDS)
    return [
        {
            "server": kind,
            "connections": connections,
            "rows": rows,
            "CPU ms per request": min(times),
            "requests per s": max(rates[kind, connections, rows]),
            "raw runtime CPU / server CPU": min(raw[rows]) / min(times),
        }
        for (kind, connections, rows), times in spent.items()
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file, repository = Path(folder) / "mlp.onnx", Path(folder) / "repository"
        export(file)
        subprocess.run([FATHOM, "import", file, "--name", "mlp", "--repository", repository], check=True, stdout=-3)
        report("What a request costs", measure(file, repository), rounds=ROUNDS, seconds=SECONDS)
