"""One worker on the tiny language model, and the hand-written results of a study."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.study.record import SampleResult
from service.study.sample import StudyConfig
from service.study.worker import Job, Worker

WriteRows = Callable[..., Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows, or lines as they are, into a data set and return its path."""

    def write(*rows: dict[str, Any] | str) -> Path:
        file = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines))
        return file

    return write


@pytest.fixture(scope="session")
def results() -> list[SampleResult]:
    """Four samples of a model of 4 layers, written by hand."""
    lines = (Path(__file__).parent / "results.jsonl").read_text().splitlines()
    return [SampleResult.model_validate_json(line) for line in lines]


@pytest.fixture(scope="module")
def worker(tiny_repository: Path) -> Iterator[Worker]:
    """A worker on `tinylm`, as the processes of a study have."""
    worker = Worker(Job(Settings(repository=tiny_repository), "tinylm", StudyConfig(simulations=60)))
    yield worker
    worker.close()
