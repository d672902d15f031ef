"""Runs work that is over after one pass, each kind together. Knows no queue, no thread and no future."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from models.errors import BackendError, FathomError, GroupLostError
from service.engine.executor import Executor
from service.engine.forward import run_embeds, run_encodes, run_scores, run_tensors
from service.engine.reader import run_reads
from service.engine.work import EmbedWork, EncodeWork, ScoreWork, SequenceWork, Tensors, TensorWork, Work

_log = logging.getLogger("fathom.engine")
_W = TypeVar("_W", bound=Work)
_NUM_RECENT = 8


class OnePass:
    """Answers batches of one-pass work, and knows from the last ones how long tensor rows take."""

    def __init__(self, executor: Executor) -> None:
        self._batch_s: deque[float] = deque([math.inf], maxlen=_NUM_RECENT)
        self._row_s: deque[float] = deque([math.inf], maxlen=_NUM_RECENT)
        self._kinds: Sequence[tuple[type[Work], Callable[[Sequence[Any]], Sequence[object]]]] = (
            (TensorWork, partial(self._run_tensors, executor)),
            (ScoreWork, partial(run_scores, executor)),
            (EmbedWork, partial(run_embeds, executor)),
            (EncodeWork, partial(run_encodes, executor)),
            (SequenceWork, partial(run_reads, executor)),
        )

    def estimate_s(self, num_rows: int) -> float:
        """Seconds a batch of tensor rows is likely to take; infinite before the first.

        The quickest of the last batches count: whatever else the machine did meanwhile made the others slower.
        """
        return max(min(self._batch_s), num_rows * min(self._row_s))

    def run(self, works: Sequence[Work]) -> list[tuple[Work, object]]:
        """Each unit of work with its result, or with the error it is at fault for."""
        now = time.perf_counter()
        for work in works:
            work.started_at = now
        answered: list[tuple[Work, object]] = []
        for kind, run in self._kinds:
            alike = [work for work in works if isinstance(work, kind)]
            answered += zip(alike, run_isolated(run, alike), strict=True)
        return answered

    def _run_tensors(self, executor: Executor, works: Sequence[TensorWork]) -> list[Tensors]:
        started = time.perf_counter()
        results = run_tensors(executor, works)
        self._batch_s.append(time.perf_counter() - started)
        self._row_s.append(self._batch_s[-1] / sum(work.num_rows for work in works))
        return results


def run_isolated(run: Callable[[Sequence[_W]], Sequence[Any]], works: Sequence[_W]) -> list[Any]:
    """Run a batch; if it fails, run each unit alone, so that only the one at fault gets the error.

    Raises GroupLostError, which none of them is at fault for, and all of them suffer.
    """
    if not works:
        return []
    try:
        return list(run(works))
    except GroupLostError:
        raise
    except Exception as error:
        if len(works) == 1:
            _log.exception("a sample failed")
            return [ours(error)]
        return [result for work in works for result in run_isolated(run, [work])]


def ours(result: object) -> object:
    """A result as it is; an exception of the runtime as one of ours."""
    if not isinstance(result, Exception) or isinstance(result, FathomError):
        return result
    return BackendError(f"the runtime failed: {result}")
