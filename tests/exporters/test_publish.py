"""A version is there as a whole or not at all, whatever the file system can do."""

import shutil
from pathlib import Path

import pytest

from exporters import publish
from exporters.publish import Exported, file_records, new_version
from models.errors import ArtifactError


def put(repository: Path, content: str, overwrite: bool = False) -> None:
    with new_version(repository, "model", "1", overwrite) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(content)


def read(repository: Path) -> str:
    assert sorted(path.name for path in repository.iterdir()) == ["model"]
    return (repository / "model" / "1" / "sub" / "file").read_text()


def test_repository_is_made_where_there_is_none(tmp_path: Path) -> None:
    put(tmp_path / "deep" / "repository", "first")
    assert read(tmp_path / "deep" / "repository") == "first"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replaced_version_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(publish, "_exchange", lambda first, second: False)
    put(tmp_path, "first")
    put(tmp_path, "second", overwrite=True)
    assert read(tmp_path) == "second"


def test_failure_while_replacing_keeps_the_old_version(tmp_path: Path) -> None:
    put(tmp_path, "first")
    with pytest.raises(TypeError):
        put(tmp_path, 7, overwrite=True)  # type: ignore[arg-type]
    assert read(tmp_path) == "first"


def test_version_that_came_up_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--overwrite"), new_version(tmp_path, "model", "1", overwrite=False):
        put(tmp_path, "faster")
    assert read(tmp_path) == "faster"


def test_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        put(tmp_path / "file", "first")


def test_files_that_another_version_has_are_stored_once(exported_mlp: Exported, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for version, changed in (("1", b""), ("2", b"another head")):
        with new_version(repository, "mine", version, overwrite=False) as folder:
            shutil.copytree(exported_mlp.directory / "onnx", folder / "onnx")
            (folder / "onnx" / "head.onnx").write_bytes(changed or (folder / "onnx" / "head.onnx").read_bytes())
            exported_mlp.manifest.model_copy(update={"files": file_records(folder)}).write(folder)
    first, second = repository / "mine" / "1" / "onnx", repository / "mine" / "2" / "onnx"
    same = {path.name: path.samefile(second / path.name) for path in first.iterdir()}
    assert same == {name: name != "head.onnx" for name in same}
    assert (second / "head.onnx").read_bytes() == b"another head"
    with new_version(repository, "mine", "1", overwrite=True) as folder:  # what is left is whole
        (folder / "empty").touch()
    assert (second / "layer_000.onnx").read_bytes() == (exported_mlp.directory / "onnx" / "layer_000.onnx").read_bytes()
