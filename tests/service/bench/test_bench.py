"""`fathom bench` against real servers: numbers that hold together, and arguments that make no sense refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.artifact import read_manifest
from service import cli
from service.bench.limit import copied_bytes_per_s, visited_bytes
from service.bench.mix import ChainMix
from service.settings import Settings

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--seconds", 0.6, "--warmup", 0.1)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_repository: Path) -> Run:
    """Run `fathom bench` in this process: exit code, output, errors."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys, "argv", ["fathom", "bench", *map(str, arguments), "--repository", str(tiny_repository)]
        )
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return start


def test_model_is_served_loaded_and_stopped(bench: Run, tmp_path: Path) -> None:
    file, picture = tmp_path / "numbers.json", tmp_path / "figure.png"
    chains = ("--chains", "full:0.5;0,2:0.5")
    code, out, errors = bench(
        "tinymlp", "--clients", "1,4", "--rows", 2, *chains, *QUICK, "--json", file, "--plot", picture
    )
    assert code == 0, errors
    assert "bare runtime" in out
    first, second = json.loads(file.read_text())
    assert (first["load"], second["load"]) == (1, 4)
    for one in (first, second):
        summary = one["summary"]
        assert summary["status"] == {"200": summary["num_requests"]}
        assert summary["rows_per_s"] == pytest.approx(2 * summary["requests_per_s"])
        assert summary["chains"].keys() == {"full", "0,2"}
        assert summary["latency"]["p50_ms"] <= summary["latency"]["p99_ms"]
        assert 0 < one["server_cpu_ms"] < 1000 * one["load"] * 4 / summary["requests_per_s"]
        assert one["server_resident_bytes"] > 30 << 20
        assert one["limit_requests_per_s"] > summary["requests_per_s"] / one["load"], "the limit is one"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_server_is_loaded_at_a_rate_and_tokens_are_timed(bench: Run, serve: Any, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    with serve(backend="onnx") as server:
        arguments = ("--model", "tinylm", "--rate", "20", "--max-new-tokens", 4, "--stream", "--random-chains", 3)
        code, out, errors = bench(str(server.client.base_url), *arguments, *QUICK, "--json", file)
    assert code == 0, errors
    assert "between tokens" in out
    (one,) = json.loads(file.read_text())
    summary = one["summary"]
    assert one["kind"] == "rate"
    assert summary["status"] == {"200": summary["num_requests"]}
    assert 0 < summary["first_token"]["p50_ms"] <= summary["latency"]["max_ms"]
    assert one["limit"]["step_s"] == pytest.approx(one["limit"]["step_bytes"] / one["limit"]["bytes_per_s"])


def test_prompts_of_a_file_are_sent(bench: Run, tmp_path: Path) -> None:
    prompts, file = tmp_path / "prompts.jsonl", tmp_path / "numbers.json"
    prompts.write_text('{"prompt": "1+2="}\n{"prompt": "17+25="}\n')
    code, _, errors = bench(
        "tinylm", "--clients", 2, "--prompts", prompts, "--max-new-tokens", 3, *QUICK, "--json", file
    )
    assert code == 0, errors
    (one,) = json.loads(file.read_text())
    assert one["summary"]["status"] == {"200": one["summary"]["num_requests"]}
    assert one["limit_tokens_per_s"] == pytest.approx(2 / one["limit"]["step_s"])


def test_weights_of_a_step_are_those_that_the_chain_visits(tiny_repository: Path) -> None:
    manifest = read_manifest(tiny_repository / "tinylm" / "1")
    settings = Settings.model_validate({"repository": tiny_repository})
    full, two = (visited_bytes(manifest, ChainMix.parse(chain), settings) for chain in ("full", "0,2"))
    mixed = visited_bytes(manifest, ChainMix.parse("full;0,2"), settings)
    assert full is not None
    assert two is not None
    assert full - two == manifest.files[manifest.forms["onnx"].layers[1]].size_bytes
    assert mixed == (full + two) / 2
    eager = Settings.model_validate({"repository": tiny_repository, "backend": "eager"})
    assert visited_bytes(manifest, ChainMix(), eager) is None, "one file has all weights"


def test_a_copy_moves_some_bytes() -> None:
    assert 1e8 < copied_bytes_per_s() < 1e13


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("absent",), ("absent", "tinylm")),
        (("http://127.0.0.1:1",), ("--model",)),
        (("http://127.0.0.1:1", "--model", "tinylm"), ("127.0.0.1:1", "does not answer")),
        (("https://127.0.0.1:1", "--model", "tinylm"), ("http://127.0.0.1:8000",)),
        (("http://[", "--model", "tinylm"), ("http://[", "not the address")),
        (("tinylm", "--model", "tinymlp"), ("tinylm", "--model")),
        (("tinylm", "--clients", "1,x"), ("--clients", "1,x")),
        (("tinylm", "--clients", "0"), ("--clients", "0")),
        (("tinylm", "--rate", "-3"), ("--rate", "-3")),
        (("tinylm", "--rate", "nan"), ("--rate", "nan")),
        (("tinylm", "--rate", "5", "--clients", "5"), ("--clients", "--rate")),
        (("tinylm", "--arrivals", "bursts"), ("bursts", "poisson")),
        (("tinylm", "--chains", "0-9"), ("layer 3", "0 to 2")),
        (("tinylm", "--chains", "full:none"), ("full:none", "weight")),
        (("tinylm", "--chains", "0", "--random-chains", "2"), ("--chains", "--random-chains")),
        (("tinymlp", "--stream"), ("--stream",)),
        (("tinymlp", "--prompts", "absent.jsonl"), ("absent.jsonl",)),
        (("tinylm", "--plot", "figure.xls"), ("figure.xls", ".png")),
    ],
)
def test_garbage_is_refused_in_one_line(bench: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    code, out, errors = bench(*arguments, *QUICK)
    assert code == 1
    assert out == ""
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors
