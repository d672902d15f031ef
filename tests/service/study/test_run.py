"""Studies as people run them: in processes, killed half-way, on Ray, and drawn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
ROWS = [
    {"prompt": f"{a}+{b}=", "target": str(a + b), "family": "add", "level": 1 + a // 5}
    for a in range(1, 10)
    for b in (2, 7)
]


def command(*options: object) -> list[str]:
    return [sys.executable, "-c", "from service.cli import main; main()", "search", *map(str, options)]


def run(*options: object) -> subprocess.CompletedProcess[str]:
    # Wide, so that messages in a box are not broken into lines.
    environment = {**os.environ, "COLUMNS": "400"}
    return subprocess.run(command(*options), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process is there and not only waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_killed_study_goes_on_with_no_sample_lost_or_searched_twice(tiny_repository, tmp_path, write_rows) -> None:
    dataset, out = write_rows(*ROWS), tmp_path / "out"
    options = ("tinylm", "--dataset", dataset, "--out", out, "--simulations", 150, "--processes", 2)
    options = (*options, "--repository", tiny_repository)
    study = subprocess.Popen(command(*options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(lines_of(out / "results.jsonl")) >= 3)
    workers = children_of(study.pid)
    study.send_signal(signal.SIGKILL)
    study.wait()
    wait_for(lambda: not any(map(is_running, workers)))
    kept = [line for line in lines_of(out / "results.jsonl") if line.endswith(b"\n")]
    assert 3 <= len(kept) < len(ROWS)
    with (out / "results.jsonl").open("ab") as file:
        file.write(kept[0][:50])  # as if it had been killed while it wrote

    again = run(*options)
    assert again.returncode == 0, again.stderr
    lines = lines_of(out / "results.jsonl")
    assert lines[: len(kept)] == kept
    assert sorted(json.loads(line)["line"] for line in lines) == list(range(1, len(ROWS) + 1))
    assert json.loads((out / "report.json").read_text())["groups"]["all"]["n"] == len(ROWS)

    refused = run(*options[:6], 50, *options[7:])
    assert refused.returncode == 1
    assert "holds a study with simulations 150 and this one has 50" in refused.stderr


def test_bad_row_is_named_before_anything_is_searched(tiny_repository, tmp_path, write_rows) -> None:
    dataset = write_rows(ROWS[0], {"prompt": "1+1=", "target": "1" * 70})
    found = run("tinylm", "--dataset", dataset, "--out", tmp_path / "out", "--repository", tiny_repository)
    assert found.returncode == 1
    assert found.stderr.startswith("fathom: line 2: the target has 71 tokens")
    assert not (tmp_path / "out").exists()


def test_explain_draws_the_tree_and_every_visit_of_the_chain(tiny_repository, tmp_path) -> None:
    picture = tmp_path / "tree.svg"
    options = ("4+7=", "--target", "36312", "--explain", picture, "--json", "--repository", tiny_repository)
    found = run("tinylm", *options, "--simulations", 40)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    root = ElementTree.fromstring(picture.read_text())
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(result["tree"])
    visits = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title") if "visit " in (title.text or "")]
    assert visits == [f"visit {visit}: layer {layer}" for visit, layer in enumerate(result["best"]["chain"])]


@pytest.mark.parametrize(
    "options", [("--dataset", "x"), ("4+7=", "--out", "x"), ("4+7=", "--dataset", "x", "--out", "y")]
)
def test_options_that_do_not_go_together_are_refused(options: tuple[str, ...]) -> None:
    found = run("tinylm", *options)
    assert found.returncode == 2
    assert "study" in found.stderr


def test_study_on_a_local_ray_of_two_workers(tiny_repository, tmp_path, write_rows) -> None:
    dataset, out = write_rows(*ROWS[:4]), tmp_path / "out"
    options = ("tinylm", "--dataset", dataset, "--out", out, "--simulations", 30, "--processes", 2, "--ray", "local")
    found = run(*options, "--repository", tiny_repository)
    assert found.returncode == 0, found.stderr
    assert sorted(json.loads(line)["line"] for line in lines_of(out / "results.jsonl")) == [1, 2, 3, 4]
