"""The README's transcripts, run as printed against a real server; only times, ids and the port may differ."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VOLATILE = {"request_id", "id", "timing", "seconds"}


def transcripts(text: str) -> list[tuple[str, str]]:
    """Commands of the console blocks with the output printed below each."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = entry.partition("\n")
            found.append((command, output))
    return found


def run(command: str, url: str, folder: Path) -> str:
    programs = sysconfig.get_path("scripts")
    local = command.replace("localhost:8000", url.removeprefix("http://")).replace(".venv/bin/", f"{programs}/")
    done = subprocess.run(["bash", "-c", local], cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def same(found: str, printed: str) -> bool:
    """Equal as JSON, floats approximately and volatile values aside; other text equal but for seconds."""
    try:
        return alike(json.loads(found), json.loads(printed))
    except json.JSONDecodeError:
        return blank(found) == blank(printed)


def alike(found: Any, printed: Any) -> bool:
    if isinstance(printed, dict):
        return found.keys() == printed.keys() and all(
            key in VOLATILE or alike(found[key], value) for key, value in printed.items()
        )
    if isinstance(printed, list):
        return len(found) == len(printed) and all(map(alike, found, printed))
    return bool(found == pytest.approx(printed, abs=1e-3)) if isinstance(printed, float) else bool(found == printed)


def blank(text: str) -> str:
    return re.sub(r"\d+\.\d+ s", "# s", text.strip())


def test_transcripts_hold(
    start: Callable[..., AbstractContextManager[Any]], shipped_repository: Path, tmp_path: Path
) -> None:
    found = transcripts((ROOT / "README.md").read_text())
    assert len(found) >= 5
    (tmp_path / "repository").symlink_to(shipped_repository)
    with start() as server:  # a fresh one, for its counters are printed
        for command, output in found:
            answer = run(command, server.url, tmp_path)
            assert same(answer, output), f"{command}\n{answer}"


def test_python_prints_what_its_comments_say(shipped_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").symlink_to(shipped_repository)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for code in blocks:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        printed = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True, timeout=120)
        assert printed.splitlines() == re.findall(r"^ *print\(.*\)  # (.+)$", code, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/checkpoints.md", "docs/tensor-parallel.md"])
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
