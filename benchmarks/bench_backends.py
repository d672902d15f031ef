"""One decode step of a Llama on every form of it.

Measured: a Llama of random weights (12 layers, width 768, float32), one new token for 1 row and for 16 rows with 64
tokens cached, one thread: eager torch, TorchScript and ONNX layer by layer as a server runs chains (keys and values in
its pages), and the whole graph in ONNX Runtime, keys and values going in and out as one stack. In turns, median of the
rounds, as a ratio to eager torch. Left out: sampling and HTTP. The whole graph at less than twice eager torch for one
row, or parts much slower than the whole, would mean that the form of the graph eats what the runtime gains.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from report import report

from exporters.export import export_checkpoint
from models.artifact import Manifest, read_manifest
from models.chain import Chain
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.weights import save
from service.backends.open import BackendName, open_backend
from service.engine.executor import Batch, Executor
from training.arith import tokenizer

CONFIG = LMConfig(1024, 768, 2048, 12, 12, 12, 128)
CACHED, ROUNDS, STEPS = 64, 7, 6
Step = Callable[[], object]


class Nobody:
    """Counts nothing."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


def parts_step(directory: Path, manifest: Manifest, name: BackendName, rows: int) -> Step:
    """A decode step through the parts of one backend."""
    columns = -(-(CACHED + 1) // 16)
    backend = open_backend(manifest, directory, name, num_threads=1, num_pages=rows * 12 * columns)
    pages = np.arange(rows * 12 * columns).reshape(rows, 12, columns)
    token_ids, starts = np.ones((rows, 1), np.int64), np.full(rows, CACHED)
    batch = Batch(
        {"token_ids": token_ids},
        (Chain.full(12),) * rows,
        starts,
        np.ones(rows, np.int64),
        np.zeros((rows, 1), np.int64),
        pages,
    )
    return partial(Executor(backend, Nobody()).run, batch)


def whole_step(path: Path, rows: int) -> Step:
    """A decode step of the whole graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    past = np.random.default_rng(0).standard_normal((12, rows, 12, CACHED, 64), np.float32)
    token_ids, starts = np.ones((rows, 1), np.int64), np.full(rows, CACHED)
    names = [entry.name for entry in session.get_inputs()]
    inputs = dict(zip(names, (token_ids, starts, past, past.copy()), strict=True))
    return lambda: session.run(None, inputs)


def median_s(steps: dict[str, Step]) -> dict[str, float]:
    """Seconds of one step each, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure(directory: Path) -> list[dict[str, object]]:
    manifest = read_manifest(directory)
    rows: list[dict[str, object]] = []
    for count in (1, 16):
        steps = {name: parts_step(directory, manifest, name, count) for name in ("eager", "torchscript", "onnx")}
        steps["onnx, whole"] = whole_step(directory / str(manifest.forms["onnx"].whole), count)
        found = median_s(steps)
        rows += [
            {"form": name, "rows": count, "ms": 1e3 * seconds, "eager / this": found["eager"] / seconds}
            for name, seconds in found.items()
        ]
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "llama"
        save(LanguageModel(CONFIG), checkpoint)
        tokenizer.save(checkpoint, CONFIG.max_position_embeddings)
        exported = export_checkpoint(checkpoint, Path(folder) / "repository")
        report("A decode step of every form", measure(exported.directory), cached=CACHED)
