"""The command `fathom`: answers without a server, errors in one line, and no torch where none is needed."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import cli

ROW = "[1, 0, 2, 0.5, 1.5, 3]"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `fathom` with these arguments in this process; its exit code, output and errors."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fathom", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return start


@pytest.fixture
def fathom(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `fathom` as a process of its own."""

    def start(*arguments: object, python: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        code = "from service.cli import main; main()"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FATHOM_")}
        return subprocess.Popen(
            [sys.executable, *python, "-c", code, *map(str, arguments)],
            env={**clean, "PYTHONPATH": str(Path.cwd()), **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _one_line(code: int, errors: str, *words: str) -> None:
    assert code == 1
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("fathom: ")
    for word in words:
        assert word in errors


def test_models_lists_the_repository(run: Run, tiny_repository: Path) -> None:
    code, out, _ = run("models", "--repository", tiny_repository, "--json")
    assert code == 0
    found = {one["name"]: one for one in json.loads(out)}
    assert found.keys() == {"tinylm", "tinymlp"}
    assert found["tinylm"]["num_layers"] == 3
    assert found["tinylm"]["formats"] == ["onnx", "safetensors", "torchscript"]
    code, out, _ = run("models", "--repository", tiny_repository)
    assert code == 0
    assert "tinylm" in out


def test_predict_answers_as_over_http(run: Run, tiny_repository: Path, serve: Any) -> None:
    code, out, _ = run(
        "predict", "tinylm", "12+7=", "123", "--chain", "0,0,2", "--repository", tiny_repository, "--json"
    )
    assert code == 0
    with serve(backend="onnx") as server:
        assert json.loads(out)["outputs"] == server.predict("tinylm", ["12+7=", "123"], chain="0,0,2")["outputs"]
    code, out, _ = run("predict", "tinylm", "12+7=", "--max-new-tokens", 2, "--repository", tiny_repository)
    assert code == 0
    assert re.fullmatch(r".*\t6 of 6 layers\n", out)


def test_predict_takes_rows(run: Run, tiny_repository: Path) -> None:
    code, out, _ = run("predict", "tinymlp", ROW, "--repository", tiny_repository, "--json")
    assert code == 0
    assert len(json.loads(out)["outputs"][0]["outputs"]["logits"]) == 4


def test_search_finds_a_chain(run: Run, tiny_repository: Path) -> None:
    arguments = ("--simulations", 40, "--repository", tiny_repository)
    code, out, _ = run("search", "tinymlp", ROW, "--target", 2, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["oracle"]
    code, out, _ = run("search", "tinylm", "12+7=", *arguments)
    assert code == 0
    assert "best" in out
    assert "certified" in out
    assert "simulations" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "absent", "1"), ("absent", "tinylm")),
        (("predict", "tinylm", "1", "--chain", "7"), ("layer 7", "0 to 2")),
        (("predict", "tinylm", "\u00e9"), ("\u00e9", "alphabet")),
        (("predict", "tinylm", "1" * 64), ("64 tokens", "63")),
        (("predict", "tinylm", "1", "--max-new-tokens", 0), ("max_new_tokens",)),
        (("predict", "tinymlp", "[1, 2]"), ("dimension 1", "6")),
        (("search", "tinylm", "1", "--target", "\u00e9"), ("\u00e9", "alphabet")),
        (("search", "tinymlp", ROW, "--target", "9"), ("target 9", "0 to 3")),
        (("serve", "--port", 70000), ("FATHOM_PORT", "70000", "65535")),
        (("serve", "--backend", "abacus"), ("FATHOM_BACKEND", "abacus", "onnx")),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    run: Run, tiny_repository: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    code, out, errors = run(*arguments, "--repository", tiny_repository)
    assert out == ""
    _one_line(code, errors, *words)


def test_unknown_settings_are_refused(run: Run, tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_PROT", "8000")
    for arguments in (("serve",), ("models",), ("predict", "tinylm", "1")):
        code, _, errors = run(*arguments, "--repository", tiny_repository)
        _one_line(code, errors, "FATHOM_PROT", "FATHOM_PORT")


def test_port_in_use_is_refused(run: Run, tiny_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, errors = run("serve", "--port", port, "--repository", tiny_repository)
    _one_line(code, errors, f"127.0.0.1:{port}", "in use", "--port")


def test_both_runtime_wheels_are_refused(fathom: Any, tiny_repository: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        (tmp_path / f"{name}-9.9.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.9\n"
        (tmp_path / f"{name}-9.9.dist-info" / "METADATA").write_text(metadata)
    process = fathom("predict", "tinylm", "1", "--repository", tiny_repository)
    _, errors = process.communicate(timeout=120)
    _one_line(process.returncode, errors, "onnxruntime and onnxruntime-gpu", "uninstall both", "extras")


def test_serving_onnx_models_never_imports_torch(fathom: Any, tiny_repository: Path) -> None:
    process = fathom(
        "serve", "--port", 0, "--repository", tiny_repository, python=("-X", "importtime"), FATHOM_BACKEND="onnx"
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()
    try:
        address = _wait_for(lambda: next((json.loads(line)["address"] for line in lines if '"address"' in line), None))
        with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
            _wait_for(lambda: client.get("/health/ready").status_code == 200)
            answer = client.post("/predict", json={"model": "tinylm", "inputs": ["12+7="]})
            assert answer.status_code == 200
            found = client.post("/cola/search", json={"model": "tinylm", "input": "1+1=", "budget": {"simulations": 8}})
            assert found.status_code == 200
    finally:
        process.terminate()
        code = process.wait(timeout=60)
        reader.join()
        process.stdout.close()
        process.stderr.close()
    assert code == 0
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert {"service.engine.engine", "onnxruntime"} <= imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "exporters")} - {
        "exporters",
        "exporters.cli",  # only the command's arguments
    }


def test_export_and_import_are_commands(
    run: Run, tiny_mlp_checkpoint: Path, tiny_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "made"
    code, _, errors = run("export", tiny_mlp_checkpoint, "--formats", "onnx", "--repository", repository)
    assert code == 0, errors
    whole = tiny_repository / "tinymlp" / "1" / "onnx" / "whole.onnx"
    code, _, errors = run("import", whole, "--name", "adopted", "--repository", repository)
    assert code == 0, errors
    _, own, _ = run("predict", "tinymlp", ROW, "--repository", repository, "--json")
    _, foreign, _ = run("predict", "adopted", ROW, "--repository", repository, "--json")
    (mine,), (theirs,) = json.loads(own)["outputs"], json.loads(foreign)["outputs"]
    assert list(theirs["outputs"].values()) == [mine["outputs"]["logits"]]
    assert theirs["chain"] == []
    code, _, errors = run("predict", "adopted", ROW, "--chain", "0", "--repository", repository)
    _one_line(code, errors, "adopted", "served whole")
    code, _, errors = run("export", tmp_path / "nothing", "--repository", repository)
    assert code == 1


def _wait_for(value: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 120
    while not (found := value()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found
