"""The wheel: complete, licensed, one version, and extras that exclude each other."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("fathom", "models", "exporters", "service", "training")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    # A development tool holds `packaging` back; setuptools brings the one it needs.
    environment = {**os.environ, "PYTHONPATH": str(files("setuptools") / "_vendor")}
    subprocess.run([sys.executable, "-c", build], cwd=folder, env=environment, check=True, capture_output=True)
    (path,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_wheel_carries_every_module_and_checkpoint(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    shipped = {path.relative_to(ROOT) for path in (ROOT / "models/checkpoints").rglob("*") if path.is_file()}
    assert {path.parts[2] for path in shipped} >= {"arith", "digits"}
    assert modules | {path.as_posix() for path in shipped} <= set(wheel.namelist())


def test_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {"fathom/py.typed", "models/py.typed", "service/py.typed"} <= set(wheel.namelist())


def test_shipped_weights_stay_small(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.file_size for entry in wheel.infolist() if entry.filename.endswith(".safetensors")) <= 20_000_000


def test_commands_are_declared(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(metadata(wheel, "entry_points.txt"))
    assert entries["console_scripts"]["fathom"] == "service.cli:main"
    assert entries["fathom.commands"]["export"].startswith("exporters.")


def test_runtimes_come_by_exclusive_extras(wheel: zipfile.ZipFile) -> None:
    required = Parser().parsestr(metadata(wheel, "METADATA")).get_all("Requires-Dist") or []
    runtimes = [line for line in required if re.match(r"(torch|onnxruntime(-gpu)?)\b", line)]
    assert all("extra ==" in line for line in runtimes)
    assert [line for line in runtimes if 'extra == "onnx"' in line and line.startswith("torch")] == []
    (conflict,) = PROJECT["tool"]["uv"]["conflicts"]
    assert [entry["extra"] for entry in conflict] == ["cpu", "gpu", "onnx"]


def test_licence_is_apache_2(wheel: zipfile.ZipFile) -> None:
    assert Parser().parsestr(metadata(wheel, "METADATA"))["License-Expression"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in metadata(wheel, "licenses/LICENSE")


def test_version_is_written_once(wheel: zipfile.ZipFile) -> None:
    version = PROJECT["project"]["version"]
    assert Parser().parsestr(metadata(wheel, "METADATA"))["Version"] == version
    quoted = f'"{version}"'
    assert [name for name in PACKAGES for path in (ROOT / name).rglob("*.py") if quoted in path.read_text()] == []
