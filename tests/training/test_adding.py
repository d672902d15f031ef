"""The page about adding a model, followed to the letter in a copy of the sources."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-model.md"
COPIED = ("models", "training", "exporters", "service", "fathom", "docs", "pyproject.toml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def put(copy: Path, block: str) -> None:
    """A block goes into the file that its first line names: a new one, the end of one, or a table."""
    name, code = block.split("\n", 1)
    path = copy / name.removeprefix("# ")
    if not path.exists():
        path.write_text(code)
    elif code.startswith("    "):
        path.write_text(path.read_text().replace("] = {\n", "] = {\n" + code, 1))
    else:
        path.write_text(path.read_text() + "\n\n" + code)


def test_page_adds_a_model_in_thirty_lines_or_so(tmp_path: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    code = blocks("python")
    assert sum(1 for block in code for line in block.splitlines() if line.strip()) <= 40
    for block in code:
        put(tmp_path, block)
    (commands,) = blocks("sh")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = "import sys; from service.cli import main; sys.argv[0] = 'fathom'; main()"
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        start = [sys.executable, "-c", run] if program == "fathom" else [sys.executable]
        done = subprocess.run(
            [*start, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "squared" / "1" / "manifest.json").is_file()
    assert "| S000 | `squared` |" in (tmp_path / "docs" / "models.md").read_text()
