"""The manifest: what it refuses, and which versions a repository shows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.artifact import (
    FileRecord,
    Form,
    Manifest,
    TensorSpec,
    file_record,
    find_version,
    list_versions,
    read_manifest,
)
from models.errors import ArtifactError, UnknownModelError

FEATURES = TensorSpec(name="features", datatype="FP32", shape=(-1, 2))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version of one file, `onnx/whole.onnx`."""
    return make_version(tmp_path, "model", "1")


def make_version(repository: Path, name: str, version: str) -> Path:
    directory = repository / name / version
    (directory / "onnx").mkdir(parents=True)
    (directory / "onnx" / "whole.onnx").write_bytes(b"graph")
    Manifest(
        name="model",
        version="1",
        kind="tensor",
        inputs=(FEATURES,),
        outputs=(FEATURES,),
        forms={"onnx": Form(whole="onnx/whole.onnx", tolerance=1e-4)},
        files={"onnx/whole.onnx": file_record(directory / "onnx" / "whole.onnx")},
    ).write(directory)
    return directory


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_written_manifest_is_read_back(version: Path) -> None:
    manifest = read_manifest(version)
    manifest.write(version)
    assert read_manifest(version) == manifest
    assert manifest.num_layers == 0
    assert not manifest.forms["onnx"].has_parts


def test_exported_manifest_describes_its_model(tiny_repository: Path) -> None:
    manifest = read_manifest(tiny_repository / "tinylm" / "1")
    assert (manifest.kind, manifest.num_layers) == ("causal-lm", 3)
    assert sorted(manifest.forms) == ["onnx", "safetensors", "torchscript"]
    assert manifest.language is not None
    assert (manifest.language.vocab_size, manifest.language.eos_token_ids) == (18, (0,))


@pytest.mark.parametrize("content", [b"grapH", b"graph and more", b""])
def test_file_of_other_content_is_refused(content: bytes, version: Path) -> None:
    (version / "onnx" / "whole.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"whole.onnx is not the exported file: {len(content)} bytes .*export"):
        read_manifest(version)


def test_wrong_hash_is_refused(version: Path) -> None:
    rewrite(version, lambda raw: raw["files"]["onnx/whole.onnx"].update(sha256="0" * 64))
    with pytest.raises(ArtifactError, match="the manifest says 5 bytes with 000000000000"):
        read_manifest(version)


def test_missing_file_is_refused(version: Path) -> None:
    (version / "onnx" / "whole.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"whole.onnx is missing; export the model again"):
        read_manifest(version)


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest.json does not exist"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../../secret", "onnx/../../../secret", "/etc/hostname", "link"])
def test_file_outside_the_version_is_refused(name: str, version: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (version / "link").symlink_to(secret)
    rewrite(version, lambda raw: raw["files"].update({name: file_record(secret).model_dump()}))
    with pytest.raises(ArtifactError, match=f"names '{name}', which lies outside"):
        read_manifest(version)


@pytest.mark.parametrize("name", ["../../secret", "onnx/other.onnx"])
def test_file_without_a_hash_is_refused(name: str, version: Path) -> None:
    rewrite(version, lambda raw: raw["forms"]["onnx"].update(whole=name))
    with pytest.raises(ArtifactError, match=f"uses '{name}' without listing its hash"):
        read_manifest(version)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda raw: raw.update(colour="red"), "colour"),
        (lambda raw: raw["forms"]["onnx"].update(colour="red"), "forms.onnx.colour"),
        (lambda raw: raw.update(schema_version=2), "schema_version"),
        (lambda raw: raw.update(kind="poem"), "kind"),
        (lambda raw: raw.pop("forms"), "forms"),
        (lambda raw: raw.update(name="../up"), "name"),
        (lambda raw: raw.update(version=""), "version"),
        (lambda raw: raw["inputs"][0].update(datatype="STRING"), r"inputs\.0\.datatype"),
        (lambda raw: raw["files"]["onnx/whole.onnx"].update(sha256="abc"), r"files\.onnx/whole\.onnx\.sha256"),
        (lambda raw: raw["forms"].update(tflite={"tolerance": 1}), r"forms\.tflite"),
        (lambda raw: raw.update(layers={"count": 0, "residual_form": "standard", "cost": []}), r"layers\.count"),
    ],
)
def test_bad_field_is_named(change: Callable[[dict[str, Any]], object], place: str, version: Path) -> None:
    rewrite(version, change)
    with pytest.raises(ArtifactError, match=f"is not a valid manifest: {place}"):
        read_manifest(version)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_manifest_that_is_no_object_is_refused(content: bytes, version: Path) -> None:
    (version / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a valid manifest: the document"):
        read_manifest(version)


def test_record_knows_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * (1 << 19))  # larger than one block
    empty = tmp_path / "empty"
    empty.touch()
    assert file_record(path) == FileRecord(
        sha256="0837d29981acf44f8524af3c3fa54dab13a8c5786525d09da856176558dcdfd6", size_bytes=3 << 19
    )
    assert file_record(empty) == FileRecord(
        sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", size_bytes=0
    )


def test_versions_are_ordered_by_number_then_by_name(tmp_path: Path) -> None:
    for version in ("10", "beta", "9", "2", "alpha"):
        make_version(tmp_path, "model", version)
    make_version(tmp_path, "other", "²")  # a digit to some, no number
    assert list_versions(tmp_path) == {"model": ["2", "9", "10", "alpha", "beta"], "other": ["²"]}


def test_latest_version_is_found_unless_one_is_named(tmp_path: Path) -> None:
    for version in ("2", "10"):
        make_version(tmp_path, "model", version)
    assert find_version(tmp_path, "model") == tmp_path / "model" / "10"
    assert find_version(tmp_path, "model", "2") == tmp_path / "model" / "2"
    with pytest.raises(UnknownModelError, match=r"no model 'ghost'; the repository has \['model'\]"):
        find_version(tmp_path, "ghost")
    with pytest.raises(UnknownModelError, match=r"no version '3'; it has \['2', '10'\]"):
        find_version(tmp_path, "model", "3")


@pytest.mark.parametrize("name", ["..", ".", "model/1", "../model"])
def test_names_that_are_paths_find_nothing(name: str, tmp_path: Path) -> None:
    make_version(tmp_path, "model", "1")
    with pytest.raises(UnknownModelError):
        find_version(tmp_path, name)
    with pytest.raises(UnknownModelError):
        find_version(tmp_path, "model", name)


def test_half_written_version_is_invisible(tmp_path: Path) -> None:
    make_version(tmp_path, "model", "1")
    make_version(tmp_path, "model", ".2")
    make_version(tmp_path, ".model-3-hidden", "3")
    shutil.move(make_version(tmp_path, "loose", "1") / "manifest.json", tmp_path / ".loose-1-hidden")
    (tmp_path / "model" / "4").mkdir()
    assert list_versions(tmp_path) == {"model": ["1"]}


def test_repository_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert list_versions(tmp_path / "nowhere") == {}
