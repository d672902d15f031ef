"""One ONNX graph that runs any chain, which is an input of it: written from the graphs of the parts, opened, verified.

For other runtimes than ours, which runs chains part by part. The loop is an ONNX Scan, so that a chain may have any
length; what a visit keeps, keys and values or a state, goes in and comes out stacked by visit.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

from exporters import onnx as parts_onnx
from exporters.loop import loop
from exporters.parts import Parts, Run, Tensors
from exporters.verify import Case, cases, compare
from models.artifact import Difference
from models.errors import ArtifactError

NAME = f"scan{parts_onnx.SUFFIX}"


def write(parts: Parts, source: Path, folder: Path) -> Iterator[str]:
    """Write the graph into `folder`, yielding its name; the parts' graphs are those in `source`, or written anew.

    Raises ArtifactError if there are no layers, or one of the parts has no graph.
    """
    if not parts.layers:
        raise ArtifactError("a network without layers has no chain; export it as onnx")
    with parts_onnx.written(parts, source) as written:
        models = [onnx.load(written / parts_onnx.file(part)) for part in (parts.embed, *parts.layers, parts.head)]
        yield parts_onnx.save(loop(parts, models), folder / NAME)


def load(folder: Path) -> Run:
    """The graph as a callable. Raises the runtime's own errors."""
    return parts_onnx.open_run(folder / NAME)


def verify(run: Run, parts: Parts, tolerance: float) -> tuple[Difference, ...]:
    """Largest differences to the plain loop along several chains, for each size; also of what visits keep.

    Raises ArtifactError naming chain and size beyond `tolerance`.
    """
    measured: dict[tuple[int, int], float] = {}
    for case in cases(parts):
        for chain in _chains(len(parts.layers)):
            name = f"{NAME} along {','.join(map(str, chain))}"
            found = compare(name, case, _graph(run, parts, case, chain), _plain(parts, case, chain), tolerance, True)
            size = case.batch, case.length
            measured[size] = max(measured.get(size, 0.0), found)
    return tuple(Difference(batch=b, length=s, max_abs=found) for (b, s), found in measured.items())


def _chains(num_layers: int) -> tuple[tuple[int, ...], ...]:
    last = num_layers - 1
    return tuple(range(num_layers)), (last,), (last, 0, 0, last), tuple(range(num_layers)) * 2


def _graph(run: Run, parts: Parts, case: Case, chain: tuple[int, ...]) -> Tensors:
    plain = case.whole[: len(case.whole) - parts.num_kept]
    kept = (tensor[list(chain)] for tensor in case.whole[len(plain) :])
    return run(*plain, *kept, torch.tensor(chain))


def _plain(parts: Parts, case: Case, chain: tuple[int, ...]) -> Tensors:
    hidden, *shared = parts.embed(*case.first)
    after = []
    for layer in chain:
        hidden, *new = parts.layers[layer](hidden, *shared, *case.past[layer])
        after.append(new)
    return *parts.head(hidden, *case.last), *(torch.stack(tensors) for tensors in zip(*after, strict=True))
