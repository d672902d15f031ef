"""The processes of a study: each opens the model for itself and studies one sample after another."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from models.errors import BackendError, FathomError, InputError
from service.backends.open import refuse_both_runtimes
from service.engine.engine import Engine
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings
from service.study.dataset import Row
from service.study.record import SampleResult
from service.study.sample import SampleStudy, StudyConfig


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know; it is sent to other processes and machines."""

    settings: Settings
    model: str
    config: StudyConfig


class Worker:
    """One engine on its own event loop. Not thread-safe."""

    def __init__(self, job: Job) -> None:
        refuse_both_runtimes()
        self._config = job.config
        self._runner = asyncio.Runner()
        self._registry = Registry(job.settings, Metrics())
        self.engine: Engine = self._runner.run(self._registry.load(job.model))

    def check(self, row: Row) -> None:
        """Raise InputError naming the line if the model cannot take this row."""
        try:
            SampleStudy(self.engine, row, self._config)
        except FathomError as error:
            raise InputError(f"line {row.line}: {error}") from error

    def study(self, row: Row) -> SampleResult:
        """All searches and controls of one row."""
        self.check(row)
        return self._runner.run(SampleStudy(self.engine, row, self._config).run())

    def close(self) -> None:
        """Free the model."""
        self._runner.run(self._registry.close())
        self._runner.close()


def study_in_processes(job: Job, rows: Sequence[Row], num_processes: int) -> Iterator[SampleResult]:
    """Study the rows in `num_processes` new processes; results come as they are ready.

    Raises BackendError if a process dies. No process outlives this one, however it ends.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=(job,))
    try:
        for future in as_completed([pool.submit(_study, row) for row in rows]):
            yield future.result()
    except BrokenProcessPool as error:
        raise BackendError("a process of the study died; what is done is kept, run the same command again") from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Worker


def _begin(job: Job) -> None:
    global _worker  # noqa: PLW0603
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked to stop, and stops its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(job)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a child"
    parent.join()
    os._exit(1)


def _study(row: Row) -> SampleResult:
    return _worker.study(row)
