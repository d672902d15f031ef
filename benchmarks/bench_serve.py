"""What a request costs the server, beside LitServe, a naive FastAPI server, a bare ASGI function and the raw runtime.

Measured: CPU milliseconds of the server's processes per request, the robust figure on a busy machine; requests per
second; seconds from starting the process to its first answer, and its memory after 100 requests. A perceptron of
64-256-256-10 as one ONNX graph, JSON bodies, and binary tensors for Fathom, keep-alive connections in a closed loop
from another process, one server at a time, alternating. Left out: other machines. A model's share of CPU below 0.2 at
32 rows, or more CPU per request than the naive server, would mean that the engine is in the way.
"""

import subprocess
import tempfile
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from report import report
from serving import FATHOM, binary_call, json_call, load, raw_ms, serving
from torch import nn

CASES = ((1, 1, "json"), (64, 1, "json"), (8, 32, "json"), (8, 32, "binary"))  # connections, rows of a request, body
SERVERS = ("fathom", "naive", "litserve", "floor")
ROUNDS, SECONDS = 3, 1.5


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


def inputs(rows: int) -> np.ndarray:
    """The same rows every time."""
    return np.random.default_rng(0).uniform(-1, 1, (rows, 64)).astype(np.float32)


def measure(file: Path, repository: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Cost of each case and server; start and memory of each server."""
    spent: dict[tuple[object, ...], list[float]] = {}
    rates: dict[tuple[object, ...], list[float]] = {}
    raw: dict[int, list[float]] = {}
    begun: dict[str, list[tuple[float, float]]] = {}
    one = json_call("mlp", inputs(1))
    with get_context("spawn").Pool(1) as client:
        for _ in range(ROUNDS):
            for kind in SERVERS:
                with serving(kind, file, repository, one) as server:
                    while len(client.apply(load, (server.port, [one], 8, 0.2))) < 100:
                        pass  # warm
                    begun.setdefault(kind, []).append((server.start_s, server.rss_mib()))
                    for connections, rows, body in CASES:
                        if body == "binary" and kind != "fathom":
                            continue
                        raw.setdefault(rows, []).append(raw_ms(file, inputs(rows), 0.3))
                        call = (
                            json_call("mlp", inputs(rows)) if body == "json" else binary_call("mlp", "x", inputs(rows))
                        )
                        before = server.cpu_s()
                        count = len(client.apply(load, (server.port, [call], connections, SECONDS)))
                        case = (kind, connections, rows, body)
                        spent.setdefault(case, []).append(1000 * (server.cpu_s() - before) / count)
                        rates.setdefault(case, []).append(count / SECONDS)
    costs = [
        {
            "server": case[0],
            "connections": case[1],
            "rows": case[2],
            "body": case[3],
            "CPU ms per request": min(times),
            "requests per s": max(rates[case]),
            "raw runtime CPU / server CPU": min(raw[case[2]]) / min(times),
        }
        for case, times in sorted(spent.items(), key=lambda one: one[0][1:])
    ]
    starts = [
        {
            "server": kind,
            "s to the first answer": median(start for start, _ in found),
            "MiB after 100 requests": median(rss for _, rss in found),
        }
        for kind, found in begun.items()
    ]
    return costs, starts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file, repository = Path(folder) / "mlp.onnx", Path(folder) / "repository"
        export(file)
        subprocess.run([FATHOM, "import", file, "--name", "mlp", "--repository", repository], check=True, stdout=-3)
        costs, starts = measure(file, repository)
        report("Start and memory", starts, rounds=ROUNDS)
        report("What a request costs", costs, rounds=ROUNDS, seconds=SECONDS)
