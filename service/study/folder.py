"""The folder of a study: its pinned configuration, and one line per finished sample. Knows no model."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.errors import InputError
from service.study.record import SampleResult

CONFIG = "study.json"
RESULTS = "results.jsonl"


class StudyFolder:
    """An open folder. One process has it at a time; killed at any moment, it can be opened again and gone on with."""

    def __init__(self, path: Path, pinned: dict[str, Any]) -> None:
        """Create or reopen. Raises InputError if the folder holds another study or is in use."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._file = (path / RESULTS).open("ab+", buffering=0)
        try:
            self._lock()
            self._pin(pinned)
            self._drop_torn_line()
        except InputError:
            self.close()
            raise

    def results(self) -> list[SampleResult]:
        """What is finished, by line of the dataset. Raises InputError for a line that no study wrote."""
        self._file.seek(0)
        found = {}
        for number, line in enumerate(self._file.read().splitlines(), 1):
            try:
                result = SampleResult.model_validate_json(line)
            except ValidationError as error:
                raise InputError(
                    f"{self.path / RESULTS} line {number} is no result; remove it and run again"
                ) from error
            found[result.line] = result
        return [found[line] for line in sorted(found)]

    def append(self, result: SampleResult) -> None:
        """Write one result for good: a whole line, on the disk when this returns."""
        self._file.write(result.model_dump_json().encode() + b"\n")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is in use by another run; wait for it, or choose another folder") from None

    def _pin(self, pinned: dict[str, Any]) -> None:
        file = self.path / CONFIG
        wanted = json.loads(json.dumps(pinned))
        if not file.exists():
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(wanted, indent=2) + "\n")
            partial.replace(file)
        held = json.loads(file.read_text())
        for name in sorted({*wanted, *held}):
            if held.get(name) != wanted.get(name):
                raise InputError(
                    f"{self.path} holds a study with {name} {held.get(name)!r} and this one has {wanted.get(name)!r}; "
                    f"go on with the same or choose another folder"
                )

    def _drop_torn_line(self) -> None:
        """A process killed while it wrote leaves a line without its end; that sample is searched again."""
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)
