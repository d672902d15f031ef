"""A study from dataset to report: check, search what is missing, write down, report."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.artifact import MANIFEST, Manifest
from models.errors import InputError
from service.settings import Settings
from service.study.cluster import study_on_ray
from service.study.dataset import Row, read_rows
from service.study.folder import StudyFolder
from service.study.record import SampleResult
from service.study.sample import StudyConfig
from service.study.worker import Job, Worker, study_in_processes
from service.study.write import write_report

OnDone = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Study:
    """What to study and where to. num_processes: 1 or more, or actors on the Ray cluster at `ray`."""

    settings: Settings
    model: str
    dataset: Path
    out: Path
    limit: int | None = None
    num_processes: int = 1
    ray: str | None = None
    config: StudyConfig = field(default_factory=StudyConfig)


def run_study(study: Study, on_done: OnDone) -> Path:
    """Study every row that has no result yet, then write the report and return its path.

    `on_done` hears how many of how many rows are done. Every row is checked before the first is searched.
    Raises InputError naming the line of a bad row, or what differs from the study that the folder holds.
    """
    rows = read_rows(study.dataset, study.limit)
    job = Job(study.settings, study.model, study.config)
    manifest = _check(job, rows)
    folder = StudyFolder(study.out, _pinned(study, manifest, rows))
    try:
        done = {result.line for result in folder.results()}
        on_done(len(done), len(rows))
        for result in _results(study, job, [row for row in rows if row.line not in done]):
            folder.append(result)
            done.add(result.line)
            on_done(len(done), len(rows))
        return write_report(study.out, folder.results(), _pinned(study, manifest, rows))
    finally:
        folder.close()


def _results(study: Study, job: Job, rows: Sequence[Row]) -> Iterator[SampleResult]:
    if not rows:
        return iter(())
    if study.ray is not None:
        return study_on_ray(job, rows, study.num_processes, study.ray)
    return study_in_processes(job, rows, study.num_processes)


def _check(job: Job, rows: Sequence[Row]) -> Manifest:
    worker = Worker(job)
    try:
        if not worker.engine.num_layers:
            raise InputError(f"model {job.model!r} is served whole; there are no chains to study")
        for row in rows:
            worker.check(row)
        return worker.engine.manifest
    finally:
        worker.close()


def _pinned(study: Study, manifest: Manifest, rows: Sequence[Row]) -> dict[str, Any]:
    """What makes two runs the same study; how many processes share the work does not."""
    artifact = study.settings.folder / manifest.name / manifest.version / MANIFEST
    return {
        "model": manifest.name,
        "version": manifest.version,
        "manifest_sha256": hashlib.sha256(artifact.read_bytes()).hexdigest(),
        "dataset_sha256": hashlib.sha256(study.dataset.read_bytes()).hexdigest(),
        "rows": len(rows),
        **asdict(study.config),
        **study.config.constants(manifest.num_layers),
    }
