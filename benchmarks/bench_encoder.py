"""A model that is not small: does batching make rows cheaper than the raw runtime, are 64 clients treated alike?

Measured: raw ONNX Runtime CPU for one row over the server's CPU for one request of a row (above 1, batching made rows
cheaper), and p99 over p50 of the latency. A transformer encoder of 6 layers, width 256, 4 heads, 1024 inner, 32 token
ids in, 10 logits out, as one ONNX graph, JSON, closed loop of 8 and 64 clients, one server at a time, alternating.
Left out: other lengths. A share below 1.15, or a p99 above 1.5 times p50, would mean that the batcher wastes or is
unfair.
"""

import subprocess
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from report import report
from serving import FATHOM, json_call, load, raw_ms, serving
from torch import Tensor, nn

from service.bench.summary import summarise

SERVERS = ("fathom", "naive", "litserve", "litserve-batch", "floor")
CLIENTS = (8, 64)
ROUNDS, SECONDS = 2, 3.5


class Encoder(nn.Module):
    """Token ids [B, S] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True, norm_first=True)
        self.embed, self.head = nn.Embedding(1000, 256), nn.Linear(256, 10)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """The mean over the tokens decides."""
        logits: Tensor = self.head(self.layers(self.embed(token_ids)).mean(1))
        return logits


def export(file: Path) -> None:
    """Random weights, any number of rows."""
    torch.manual_seed(0)
    example = torch.zeros(2, 32, dtype=torch.int64)
    program = torch.onnx.export(
        Encoder().eval(),
        (example,),
        input_names=["token_ids"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("rows")},),
        verbose=False,
    )
    assert program is not None
    program.save(file)


def inputs(number: int) -> np.ndarray:
    """One row."""
    return np.random.default_rng(number).integers(0, 1000, (1, 32))


def measure(file: Path, repository: Path) -> list[dict[str, object]]:
    """One row for each server and number of clients."""
    calls = [json_call("encoder", inputs(number)) for number in range(16)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    raw: list[float] = []
    with get_context("spawn").Pool(1) as client:
        for _ in range(ROUNDS):
            for kind in SERVERS:
                with serving(kind, file, repository, calls[0]) as server:
                    client.apply(load, (server.port, calls, 8, 0.5))  # warm
                    for clients in CLIENTS:
                        raw.append(raw_ms(file, inputs(0)))
                        before = server.cpu_s()
                        exchanges = client.apply(load, (server.port, calls, clients, SECONDS))
                        spent, summary = 1000 * (server.cpu_s() - before) / len(exchanges), summarise(exchanges)
                        assert summary.latency is not None
                        found.setdefault((kind, clients), []).append(
                            {
                                "CPU ms per request": spent,
                                "requests per s": summary.requests_per_s,
                                "p50 ms": summary.latency.p50_ms,
                                "p99 / p50": summary.latency.p99_ms / summary.latency.p50_ms,
                            }
                        )
    best = {key: min(rounds, key=lambda one: one["CPU ms per request"]) for key, rounds in found.items()}
    for one in best.values():
        one["raw runtime CPU / server CPU"] = min(raw) / one["CPU ms per request"]
    return [
        {"server": kind, "clients": clients, **one}
        for (kind, clients), one in sorted(best.items(), key=lambda one: one[0][1])
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file, repository = Path(folder) / "encoder.onnx", Path(folder) / "repository"
        export(file)
        subprocess.run([FATHOM, "import", file, "--name", "encoder", "--repository", repository], check=True, stdout=-3)
        report("An encoder of 6 layers", measure(file, repository), rounds=ROUNDS, seconds=SECONDS)
