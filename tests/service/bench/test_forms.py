"""`fathom bench tp`: one run over a real rank, its three outputs, and arguments that make no sense refused."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models.lm.config import LMConfig
from models.parallel.latency import FORMS, Costs
from models.parallel.trial import Measured, Trial
from service import cli
from service.bench.forms import as_json, by_load, gain, tables

PAGE = Path(__file__).parents[3] / "docs/tensor-parallel.md"
Run = Callable[..., tuple[int, str, str]]
TRIAL = Trial(LMConfig(64, 32, 64, 2, 2, 2, 64), prompt_tokens=8, has_p2p=(True, False))
NAMES = (*FORMS, "ladder:1")
STANDARD = Measured(
    form="standard",
    phase="decode",
    rows=1,
    tokens=8,
    latency_s=None,
    has_p2p=None,
    best_s=0.012,
    median_s=0.013,
    predicted_s=0.01,
    costs=Costs(0.001, 0.001, 0.001),
    num_all_reduces=4,
    num_bytes=512,
    exposed_s=0.004,
)
LADDER = replace(STANDARD, form="ladder", best_s=0.006, predicted_s=0.005, exposed_s=0.001)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `fathom bench tp` in this process: exit code, output, errors."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fathom", "bench", "tp", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return start


def test_forms_of_a_checkpoint_are_timed_told_written_and_drawn(bench: Run, tmp_path: Path) -> None:
    file, picture = tmp_path / "numbers.json", tmp_path / "figure.png"
    TRIAL.config.write(tmp_path)
    sizes = ("--ranks", 1, "--forms", ",".join(NAMES), "--prompt-tokens", 4, "--repeats", 1, "--rows", "1,2")
    code, out, errors = bench(tmp_path, *sizes, "--device", "cpu", "--json", file, "--plot", picture)
    assert code == 0, errors
    assert "1 rank on cpu, 2 layers of 32" in out
    assert "no P2P to switch off" in out
    for name in NAMES:
        assert len(re.findall(rf"^ +{name} ", out, re.MULTILINE)) == 4
    measured = json.loads(file.read_text())["measured"]
    assert [(one["phase"], one["rows"]) for one in measured[:: len(NAMES)]] == [
        *(("prefill", 1), ("prefill", 2)),
        *(("decode", 1), ("decode", 2)),
    ]
    for one in measured:
        assert one["best_s"] > 0
        assert one["num_bytes"] == one["num_all_reduces"] * one["rows"] * (4 if one["phase"] == "prefill" else 1) * 128
    assert {one["gain"] for one in measured if one["form"] == "standard"} == {1.0}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_gains_are_over_the_standard_form_under_the_same_load() -> None:
    slow = [replace(one, latency_s=0.008, best_s=3 * one.best_s) for one in (STANDARD, LADDER)]
    loads = by_load([STANDARD, LADDER, *slow])
    assert [gain(together[1], together) for together in loads.values()] == [(2.0, 2.0)] * 2
    assert gain(LADDER, [LADDER]) is None
    assert [one["gain"] for one in as_json([LADDER], TRIAL)["measured"]] == [None]


def test_table_names_the_load_and_stays_narrow() -> None:
    page = StringIO()
    console = Console(width=80, file=page)
    loads = [
        (replace(STANDARD, has_p2p=has, exposed_s=None), replace(LADDER, has_p2p=has, rows=1)) for has in (True, False)
    ]
    console.print(tables([one for load in loads for one in load], replace(TRIAL, device="cuda")))
    said = page.getvalue()
    titles = re.findall(r"^decode .*?(?= *$)", said, re.MULTILINE)
    assert titles == ["decode behind 8 tokens, 1 row, P2P", "decode behind 8 tokens, 1 row, no P2P"]
    assert re.search(r"ladder +6 \(5\) +\+20% +2.00 \(2.00\) +4 +1 ", said)
    assert "no P2P to switch off" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--forms", "spiral"), ("'spiral'", "desync-2x@4")),
        (("--forms", "ladder:12"), ("ladder:12", "0 to 11")),
        (("--rows", "1,x"), ("--rows", "1,x")),
        (("--rows", "0"), ("rows", "0")),
        (("--phases", "both"), ("--phases", "both")),
        (("--p2p", "maybe"), ("--p2p", "maybe")),
        (("--ranks", "65"), ("65 ranks",)),
        (("--module-ms", "1,2,3"), ("--module-ms", "1,2,3")),
        (("--latency-ms", "soon"), ("--latency-ms", "soon")),
        (("--device", "tpu"), ("tpu", "cuda")),
        (("--hidden", "100", "--heads", "7"), ("--hidden 100", "--heads 7")),
        (("--plot", "figure.xls"), ("figure.xls", ".png")),
        (("absent",), ("absent/config.json",)),
    ],
)
def test_garbage_is_refused_in_one_line(bench: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    code, out, errors = bench(*arguments)
    assert code == 1
    assert out == ""
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors


def test_model_without_layers_to_time_is_refused(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "residual_mlp"}')
    code, _, errors = bench(tmp_path)
    assert code == 1
    assert "residual_mlp" in errors
    assert "llama" in errors


def blank(text: str) -> list[str]:
    """Words of a table, whatever its numbers, spaces and lines are."""
    return re.sub(r"[+-]?\d[\d.]*", "#", text.replace("─", "")).split()


def test_page_about_forms_prints_what_it_says(bench: Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text()
    (transcript,) = re.findall(r"```console\n\$ fathom bench tp (.*?)\n(.*?)```", page, re.DOTALL)
    code, out, errors = bench(*transcript[0].split())
    assert code == 0, errors
    assert blank(out) == blank(transcript[1])
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, PAGE.name, "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^# (.+)$", example, re.MULTILINE)
