"""What a model can become: tried on its first layer, nothing kept."""

import json
import sys
from pathlib import Path

import pytest
import typer
from torch._inductor import config as inductor
from typer.testing import CliRunner

from exporters import cli, possible, pt2
from exporters.forms import LOSSY
from exporters.parts import Part
from exporters.possible import try_formats
from models.errors import ArtifactError
from tests.contracts.classifiers import CLASSIFIERS, make


def test_every_format_is_tried(mlp_checkpoint: Path) -> None:
    found = try_formats(mlp_checkpoint)
    assert (found.kind, found.num_layers, found.refused) == ("tensor", 3, {})
    assert found.untried["aoti"].startswith("not tried")
    assert set(found.written) == {"onnx", "torchscript", "pt2", "onnx-scan", *LOSSY}
    exact = max(found.written[format].max_abs for format in ("onnx", "torchscript", "pt2", "onnx-scan"))
    assert exact <= 1e-4 < min(found.written[format].max_abs for format in LOSSY)


def test_what_cannot_be_is_told_with_its_reason_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(part: Part) -> None:
        raise ArtifactError(f"{part.name} branches on data")

    make(next(one for one in CLASSIFIERS if one.name == "resnet-without-a-run"), tmp_path / "whole")
    monkeypatch.setattr(possible, "FORMATS", ("torchscript", "pt2"))
    monkeypatch.setattr(pt2, "program", refuse)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(cli.export)
    printed = CliRunner().invoke(app, ["whole", "--list"]).stdout
    assert "whole: tensor, served whole" in printed
    assert "pt2          no   whole branches on data" in printed
    assert "torchscript  yes" in printed
    refused = json.loads(CliRunner().invoke(app, ["whole", "--list", "--json"]).stdout)["refused"]
    assert refused["pt2"] == refused["aoti"] == "whole branches on data"
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_machine_code_is_said_to_need_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(next(one for one in CLASSIFIERS if one.name == "resnet-without-a-run"), tmp_path / "whole")
    monkeypatch.setattr(possible, "FORMATS", ("torchscript", "aoti"))
    for there in (True, False):
        monkeypatch.setattr(inductor.cpp, "cxx", (None, sys.executable if there else "no-such-compiler"))
        found = try_formats(tmp_path / "whole")
        assert list(found.written) == ["torchscript"]
        if there:
            assert f"{sys.executable} is there" in found.untried["aoti"]
            assert found.refused == {}
        else:
            assert "no C++ compiler; install g++" in found.refused["aoti"]
            assert found.untried == {}
