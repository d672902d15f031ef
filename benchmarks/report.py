"""How every benchmark reports: a table for people, then one JSON line for machines. Measures nothing."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata

from rich.console import Console
from rich.table import Table


def report(title: str, rows: Sequence[Mapping[str, object]], **facts: object) -> None:
    """Print `rows` as a table and as the last line of standard output, with what is needed to repeat them."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)
    print(json.dumps({"title": title, **facts, **_circumstances(), "rows": rows}))


def _circumstances() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {name: metadata.version(name) for name in ("torch", "onnxruntime", "numpy")}
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "command": " ".join(sys.argv),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **versions,
    }
