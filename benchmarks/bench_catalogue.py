"""What it costs that a chain can be chosen: every stack of the catalogue, against its whole graph.

Measured: a pass of 8 held-out rows, one thread, of a recurrent model one chunk of steps: the whole graph as the runtime
has it; a chain of as many visits, the layers turned round, fused from its layers' files as the service fuses a chain
that is often asked for (recurrent models in ONNX only); the same through the service's batch executor; and the full
chain by a call for each layer, as a chain is run at first. Medians of alternating rounds.
Left out: HTTP, JSON, the batcher. A ratio above 1.15 means that a choice of depth costs more than it should.
"""

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from report import report
from torch import Tensor

from exporters.export import export_checkpoint, find_checkpoint
from models import catalogue
from models.artifact import read_manifest
from models.chain import Chain
from models.layered import LayeredModel, SequenceStack
from service.backends.onnx import open_onnx
from service.backends.open import open_backend
from service.backends.parts import Parts
from service.backends.protocol import Fusing
from service.backends.torchscript import open_torchscript
from service.engine.executor import Batch, Executor
from training.recipes import find_recipe, recipes

Runtime: TypeAlias = Literal["onnx", "torchscript"]
FORMATS: tuple[Runtime, ...] = ("onnx", "torchscript")
ROWS, ROUNDS, PASSES = 8, 60, 20
Pass: TypeAlias = Callable[[], Any]


class Uncounted:
    """Nobody scrapes a benchmark."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


def passes(directory: Path, format: Runtime, model: LayeredModel, rows: Tensor) -> dict[str, Pass]:
    """The whole graph first, and what chooses a chain."""
    manifest = read_manifest(directory)
    parts = opened(directory, format)
    num_layers = len(model.layers)
    states = model.empty_state(len(rows)) if isinstance(model, SequenceStack) else ()
    stacked = [torch.stack([state] * num_layers) for state in states]
    given, *every = (tensor.numpy() if format == "onnx" else tensor for tensor in (rows, *states, *stacked))
    first, all_first = every[: len(states)], every[len(states) :]
    backend = open_backend(manifest, directory, format, num_threads=1)
    executor, begun = Executor(backend, Uncounted()), from_the_first(model, rows)
    assert parts.fuse is not None
    whole = parts.fuse(range(num_layers))
    found: dict[str, Pass] = {"whole": lambda: whole(given, *all_first)}
    chain = Chain.full(num_layers)
    if isinstance(backend, Fusing) and backend.fused:
        chain = Chain(chain.layers[::-1])
        backend.fused.add(chain.layers)
        fused = opened(directory, format, is_whole=False).fuse
        assert fused is not None
        graph = fused(chain.layers)
        found["fused"] = lambda: graph(given, *(first * num_layers))
    inputs, chains = {manifest.inputs[0].name: rows.numpy()}, (chain,) * len(rows)

    def by_layers() -> Any:
        hidden = parts.embed(given)[0]
        for layer in parts.layers:
            hidden = layer(hidden, *first)[0]
        return parts.head(hidden)

    found["served"] = lambda: list(executor.run(Batch(inputs, chains, **begun())).values())
    return {**found, "layers": by_layers}


def from_the_first(model: LayeredModel, rows: Tensor) -> Callable[[], dict[str, Any]]:
    """What a batch of sequences has beside its inputs when it begins, anew for each pass."""
    if not isinstance(model, SequenceStack):
        return dict
    num_layers, (count, length) = len(model.layers), rows.shape[:2]
    starts, lengths = np.zeros(count, np.int64), np.full(count, length, np.int64)
    return lambda: {"starts": starts, "lengths": lengths, "states": [[None] * num_layers for _ in range(count)]}


def opened(directory: Path, format: Runtime, is_whole: bool = True) -> Parts:
    """All parts of a form, the graph of the full chain fused from its layers' files or the one that was exported."""
    form = read_manifest(directory).forms[format]
    form = form if is_whole else form.model_copy(update={"whole": None})
    if format == "onnx":
        return open_onnx(directory, form, "cpu", 1, fuses=True)
    return open_torchscript(directory, form, torch.device("cpu")).parts


def seconds(call: Pass) -> float:
    """Of one pass, over some."""
    started = time.perf_counter()
    for _ in range(PASSES):
        call()
    return (time.perf_counter() - started) / PASSES


def measure(name: str, folder: Path) -> list[dict[str, object]]:
    """One row for each runtime; none for a network that is no stack."""
    checkpoint = find_checkpoint(name)
    model, directory = catalogue.load(checkpoint), folder / name / "1"
    if not model.layers:
        return []
    export_checkpoint(checkpoint, folder, FORMATS)
    rows = find_recipe(name).task.heldout().inputs[:ROWS]
    if isinstance(model, SequenceStack):
        rows = rows[:, : model.max_chunk]
    found = []
    for format in FORMATS:
        calls = passes(directory, format, model, rows)
        check(calls)
        with torch.inference_mode():
            times = [{kind: seconds(call) for kind, call in calls.items()} for _ in range(ROUNDS)]
        median = {kind: statistics.median(one[kind] for one in times) for kind in calls}
        ratios = {f"{kind} / whole": median[kind] / median["whole"] for kind in calls if kind != "whole"}
        found.append(
            {
                "model": name,
                "layers": len(model.layers),
                "form": format,
                "whole, us": 1e6 * median["whole"],
                "fused / whole": math.nan,
                **ratios,
            }
        )
    return found


def check(calls: dict[str, Pass]) -> None:
    """Those of one chain give the same. Raises AssertionError."""
    pairs = [("whole", "layers"), ("fused", "served") if "fused" in calls else ("whole", "served")]
    for one, other in pairs:
        a, b = (torch.as_tensor(calls[kind]()[0]) for kind in (one, other))
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def main(names: Sequence[str]) -> None:
    """Those that are named, or every stack."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in names or recipes() for row in measure(name, Path(folder))]
    report("A chosen chain against the whole graph, 8 rows", rows, rounds=ROUNDS, passes=PASSES)


if __name__ == "__main__":
    main(sys.argv[1:])
