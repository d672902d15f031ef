"""The command `fathom sign`."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from exporters.sign import sign
from models.errors import ArtifactError


@pytest.fixture
def command() -> Any:
    """As `fathom` runs it."""
    made = Typer()
    made.command()(sign)
    return made


def test_signing_checks_the_files_first(tiny_repository: Path, tmp_path: Path, command: Any) -> None:
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True, capture_output=True)
    version = Path(shutil.copytree(tiny_repository / "tinymlp" / "1", tmp_path / "tinymlp" / "1"))
    done = CliRunner().invoke(command, [str(version), "--key", str(key)])
    assert done.stdout.strip() == f"tinymlp 1: {version / 'manifest.sig'}"
    assert (version / "manifest.sig").stat().st_size == 64
    (version / "onnx" / "head.onnx").write_bytes(b"")
    failed = CliRunner().invoke(command, [str(version), "--key", str(key)])
    assert isinstance(failed.exception, ArtifactError)
    assert "head.onnx is not the exported file" in str(failed.exception)


def test_settings_are_signed_when_they_are_named(tiny_repository: Path, tmp_path: Path, command: Any) -> None:
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True, capture_output=True)
    version = Path(shutil.copytree(tiny_repository / "tinymlp" / "1", tmp_path / "tinymlp" / "1"))
    settings = tmp_path / "tinymlp" / "settings.json"
    settings.write_text("{}")
    alone = CliRunner().invoke(command, [str(version), "--key", str(key)])
    assert f"{settings} is not signed; run: fathom sign {settings}" in alone.stderr
    assert not settings.with_name("settings.sig").exists()
    both = CliRunner().invoke(command, [str(version), str(settings), "--key", str(key)])
    assert both.stdout.splitlines()[1] == f"{settings}: {settings.with_name('settings.sig')}"
    assert settings.with_name("settings.sig").stat().st_size == 64
