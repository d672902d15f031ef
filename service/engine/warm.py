"""The first runs of a model, before anyone waits for them: runtimes choose kernels and reserve memory in these."""

import logging
import time
from collections.abc import Sequence

import numpy as np

from models.artifact import EncoderSpec, Manifest
from models.chain import Chain
from models.errors import BackendError
from service.backends.protocol import Array, Backend, Fusing
from service.engine.executor import Batch, Executor
from service.engine.queue import Limits
from service.engine.tensor import DTYPES

_log = logging.getLogger("fathom.engine")
# A full batch is run only if one row tells that it will not take longer.
_MOST_S = 0.5
# Tokens of a short prompt, and what stands in for a size the manifest leaves open.
_LENGTH = 8


class _Uncounted:
    """Nobody asked for these visits."""

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


def warm_up(manifest: Manifest, backend: Backend, limits: Limits) -> None:
    """Run zeros through every layer: one row, and a full batch if that is quick. Raises BackendError if they fail.

    Where the manifest leaves sizes open beside the rows, a failure may be due to the size tried and is only logged.
    """
    executor = Executor(backend, _Uncounted())
    if _run(manifest, executor, limits) and isinstance(backend, Fusing) and backend.fused:
        backend.fused.add(Chain.full(manifest.num_layers).layers)  # who asks for no chain never waits for its graph
        _run(manifest, executor, limits)


def _run(manifest: Manifest, executor: Executor, limits: Limits) -> bool:
    """Whether zeros have run."""
    for rows in _row_counts(manifest, limits):
        started = time.perf_counter()
        try:
            executor.run(_zeros(manifest, rows))
        except Exception as error:
            _complain(manifest, rows, error)
            return False
        if (time.perf_counter() - started) * limits.max_rows > _MOST_S:
            break
    return True


def _row_counts(manifest: Manifest, limits: Limits) -> Sequence[int]:
    fixed = {spec.shape[0] for spec in manifest.inputs} - {-1}
    most = limits.max_rows
    if manifest.language or manifest.encoder:
        most = min(most, max(limits.max_tokens // _LENGTH, 1))
    return sorted(fixed) if fixed else sorted({1, most})


def _zeros(manifest: Manifest, rows: int) -> Batch:
    chains = (Chain.full(manifest.num_layers),) * rows
    if manifest.language:
        length = min(_LENGTH, manifest.language.max_length)
        lengths = np.full(rows, length, np.int64)
        inputs: dict[str, Array] = {"token_ids": np.zeros((rows, length), np.int64)}
        return Batch(inputs, chains, np.zeros(rows, np.int64), lengths, lengths[:, None] - 1)
    if manifest.encoder:
        return _blank(manifest.encoder, rows, chains)
    shapes = {
        spec.name: (rows, *(_LENGTH if size == -1 else size for size in spec.shape[1:])) for spec in manifest.inputs
    }
    return Batch({spec.name: np.zeros(shapes[spec.name], DTYPES[spec.datatype]) for spec in manifest.inputs}, chains)


def _blank(encoder: EncoderSpec, rows: int, chains: tuple[Chain, ...]) -> Batch:
    """Texts of the first token of the vocabulary."""
    length = min(_LENGTH, encoder.max_length)
    lengths = np.full(rows, length, np.int64)
    inputs: dict[str, Array] = dict.fromkeys(("token_ids", "token_types"), np.zeros((rows, length), np.int64))
    return Batch({**inputs, "lengths": lengths}, chains, np.zeros(rows, np.int64), lengths)


def _complain(manifest: Manifest, rows: int, error: Exception) -> None:
    told = f"model {manifest.name!r} fails on {rows} rows of zeros: {error}"
    if manifest.kind == "tensor" and any(-1 in spec.shape[1:] for spec in manifest.inputs):
        _log.info("no warm-up: %s", told)
        return
    raise BackendError(f"{told}; export it again, or set FATHOM_WARM_UP to false") from error
