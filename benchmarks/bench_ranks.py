"""What it costs to have ranks do a decode step instead of this process: one message out, one answer back.

Measured: one decode step of `arith` along the full chain, from the batch to logits, medians over alternating rounds:
the plain eager backend and all of a sharded model in this process, and ranks behind their supervisor, side by side and
one after the other as stages of a pipeline. One thread each.
Left out: HTTP, the scheduler, sampling. More than a millisecond between a sharded model here and one rank would mean
that a program is too many messages, or a message too large.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from report import report

from exporters.export import export_checkpoint, find_checkpoint
from models.artifact import Manifest, read_manifest
from models.chain import Chain
from models.parallel.group import Alone
from models.parallel.stages import deal
from service.backends.open import open_backend
from service.backends.protocol import Backend
from service.backends.sharded import open_sharded
from service.engine.executor import Batch, Executor
from service.parallel.leader import Ranking, open_ranks

ROUNDS, WARM_UP, CACHED, PAGE_SIZE, MAX_ROWS = 300, 20, 12, 16, 16


class Uncounted:
    """Counts nothing."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        """Nothing."""


def step(manifest: Manifest, rows: int) -> Batch:
    """Rows that read one token after those in their one page; pages of a layer lie side by side."""
    chains = (Chain.full(manifest.num_layers),) * rows
    starts, lengths = np.full(rows, CACHED, np.int64), np.ones(rows, np.int64)
    pages = np.arange(manifest.num_layers * MAX_ROWS, dtype=np.int64).reshape(-1, MAX_ROWS).T[:rows, :, None]
    return Batch({"token_ids": np.ones((rows, 1), np.int64)}, chains, starts, lengths, lengths[:, None] - 1, pages)


@contextmanager
def backends(manifest: Manifest, directory: Path) -> Iterator[dict[str, Backend]]:
    """All that are compared, closed afterwards."""
    pages = manifest.num_layers * MAX_ROWS
    opened: dict[str, Backend] = {
        "eager": open_backend(manifest, directory, "eager", num_pages=pages, page_size=PAGE_SIZE),
        "sharded, in this process": open_sharded(manifest, directory, Alone(), pages, PAGE_SIZE),
    }
    for name, size, count in (("1 rank", 1, 1), ("2 ranks", 2, 1), ("2 stages of a rank", 2, 2)):
        stages = deal(manifest.num_layers, count)
        ranking = Ranking(
            size, "cpu", "auto", 1, step_deadline_s=20.0, group_timeout_s=30.0, rank_silence_s=1.5, stages=stages
        )
        opened[name] = open_ranks(manifest, directory, ranking, pages, PAGE_SIZE, threading.Event())
    yield opened
    for backend in opened.values():
        backend.close()


def measure(opened: dict[str, Backend], batch: Batch) -> dict[str, list[float]]:
    """Seconds of each backend, round by round."""
    executors = {name: Executor(backend, Uncounted()) for name, backend in opened.items()}
    seconds: dict[str, list[float]] = {name: [] for name in opened}
    for round_ in range(WARM_UP + ROUNDS):
        for name, executor in executors.items():
            started = time.perf_counter()
            executor.run(batch)
            if round_ >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main(repository: Path) -> None:
    """One row and sixteen."""
    directory = repository / "arith" / "1"
    manifest, rows = read_manifest(directory), []
    with backends(manifest, directory) as opened:
        for count in (1, MAX_ROWS):
            seconds = measure(opened, step(manifest, count))
            rows += [
                {
                    "rows": count,
                    "backend": name,
                    "ms, median": 1e3 * statistics.median(found),
                    "ms, least": 1e3 * min(found),
                    "ms, p99": 1e3 * statistics.quantiles(found, n=100)[98],
                }
                for name, found in seconds.items()
            ]
    report("A decode step of arith", rows, rounds=ROUNDS)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export_checkpoint(find_checkpoint("arith"), Path(folder), ("safetensors",))
            main(Path(folder))
