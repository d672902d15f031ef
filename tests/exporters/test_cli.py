"""The two commands, composed as the `fathom` command composes them."""

import json
from pathlib import Path

import onnx
import pytest
import typer
from typer.testing import CliRunner

from exporters import cli
from exporters import export as exporting
from exporters.publish import Exported
from models.artifact import read_manifest
from models.errors import InputError


@pytest.fixture
def app() -> typer.Typer:
    return composed()


def composed() -> typer.Typer:
    """The commands as one program."""
    app = typer.Typer()
    app.command("export")(cli.export)
    app.command("import")(cli.adopt)
    return app


def test_export_prints_what_was_written(app: typer.Typer, mlp_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["export", str(mlp_checkpoint), "--formats", "torchscript", "--repository", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--name", "mine", "--model-version", "3"])
    assert result.exit_code == 0, result.output
    assert "mine 3: 6 files" in result.stdout
    assert "features FP32 [-1, 6]" in result.stdout
    assert read_manifest(tmp_path / "mine" / "3").name == "mine"


def test_export_prints_nothing_but_json_when_asked(app: typer.Typer, mlp_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["export", str(mlp_checkpoint), "--formats", "safetensors", "--repository", str(tmp_path), "--json"]
    summary = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert summary["directory"] == str(tmp_path / "mlp" / "1")
    assert summary["manifest"]["forms"]["safetensors"]["whole"] == "safetensors/model.safetensors"
    assert summary["refused"] == {}


def test_refused_format_is_told_and_makes_the_command_fail(
    app: typer.Typer, mlp_checkpoint: Path, exported_mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = Exported(exported_mlp.directory, exported_mlp.manifest, {"onnx": "head differs"})
    monkeypatch.setattr(exporting, "export_checkpoint", lambda *arguments, **named: refusing)
    result = CliRunner().invoke(app, ["export", str(mlp_checkpoint), "--repository", str(tmp_path)])
    assert result.exit_code == 1
    assert "onnx REFUSED: head differs" in result.stderr


def test_errors_are_left_to_the_composing_command(app: typer.Typer, mlp_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["export", str(mlp_checkpoint), "--formats", "pdf", "--repository", str(tmp_path)]
    assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)


def test_import_adopts_a_whole_graph(app: typer.Typer, exported_mlp: Exported, tmp_path: Path) -> None:
    whole = exported_mlp.directory / "torchscript" / "whole.pt"
    arguments = ["import", str(whole), "--name", "mine", "--repository", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--input", "inputs:FP32:-1,6"])
    assert result.exit_code == 0, result.output
    assert "output FP32 [-1, 3]" in result.stdout
    whole = exported_mlp.directory / "onnx" / "whole.onnx"
    assert onnx.load(str(whole)).graph.input[0].name == "features"
    result = CliRunner().invoke(app, ["import", str(whole), "--name", "other", "--repository", str(tmp_path)])
    assert "logits FP32 [-1, 3]" in result.stdout
