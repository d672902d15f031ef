"""The report of a study as files: numbers as JSON, tables as Markdown, figures where matplotlib is installed."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.study.numbers import numbers_of
from service.study.record import SampleResult
from service.study.tables import page

NUMBERS = "report.json"
PAGE = "report.md"
# Written by a person, kept beside the results and set at the head of the page.
READING = "reading.md"


def write_report(folder: Path, results: Sequence[SampleResult], pinned: dict[str, Any]) -> Path:
    """Write everything into `folder` and return the page. The same results give the same bytes."""
    numbers = numbers_of(results)
    figures: list[str] = []
    if find_spec("matplotlib"):
        from service.study.plots import draw

        figures = draw(numbers, folder)
    reading = folder / READING
    text = page(numbers, pinned, figures, reading.read_text() if reading.exists() else "")
    (folder / NUMBERS).write_text(json.dumps({"study": pinned, **numbers}, indent=1) + "\n")
    (folder / PAGE).write_text(text)
    return folder / PAGE
