"""Signatures of versions: what is signed serves, anything else is refused, and other tools read the same."""

import subprocess
from pathlib import Path

import pytest

from models.artifact import Form, Manifest, file_record, read_manifest
from models.errors import ArtifactError
from models.signature import SETTINGS_SIGNATURE, SIGNATURE, settings_verifier, sign, sign_settings, verifier


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key, made as the messages say."""
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version of one file."""
    directory = tmp_path / "model" / "1"
    directory.mkdir(parents=True)
    (directory / "graph").write_bytes(b"graph")
    record = file_record(directory / "graph")
    Manifest(
        name="model",
        version="1",
        kind="tensor",
        inputs=(),
        outputs=(),
        forms={"onnx": Form(whole="graph", tolerance=0)},
        files={"graph": record},
    ).write(directory)
    return directory


def test_signed_version_is_read_and_openssl_agrees(version: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    signature = sign(version, private)
    assert signature == version / SIGNATURE
    assert read_manifest(version, verifier(public)).name == "model"
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin")
    openssl(*verify, "-in", version / "manifest.json", "-sigfile", signature)
    signature.unlink()
    openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", version / "manifest.json", "-out", signature)
    assert read_manifest(version, verifier(public)).name == "model"


def test_anything_else_is_refused_by_name(version: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    with pytest.raises(ArtifactError, match=r"model/1 has no signature .*fathom sign"):
        read_manifest(version, verifier(public))
    sign(version, private)
    manifest = version / "manifest.json"
    plain = manifest.read_bytes()
    manifest.write_bytes(plain + b" ")
    with pytest.raises(ArtifactError, match=r"model/1/manifest.sig is not that of its manifest by .*key.pub"):
        read_manifest(version, verifier(public))
    manifest.write_bytes(plain)
    (version / "graph").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="graph is not the exported file"):
        read_manifest(version, verifier(public))
    (version / SIGNATURE).write_bytes(b"short")
    with pytest.raises(ArtifactError, match="not that of its manifest"):
        read_manifest(version, verifier(public))


def test_bad_keys_are_refused_with_a_remedy(version: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    other = tmp_path / "rsa.pem"
    openssl("genpkey", "-algorithm", "x25519", "-out", other)
    for use, bad, words in (
        (sign, public, "no private key"),
        (sign, other, "another kind than Ed25519"),
        (sign, tmp_path / "absent", "cannot be read"),
    ):
        with pytest.raises(ArtifactError, match=words):
            use(version, bad)
    for bad, words in ((private, "no public key in PEM; make it with"), (version / "graph", "no public key")):
        with pytest.raises(ArtifactError, match=words):
            verifier(bad)
    with pytest.raises(ArtifactError, match="cannot be signed"):
        sign(tmp_path, private)


def test_signed_settings_are_those_of_their_model_alone_and_openssl_agrees(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    model, content = tmp_path / "mine", b'{"labels": {"stable": "1"}}'
    model.mkdir()
    (model / "settings.json").write_bytes(content)
    path = sign_settings(model, private)
    assert path == model / SETTINGS_SIGNATURE
    verify, signature = settings_verifier(public), path.read_bytes()
    verify("mine", content, signature)
    for name, came, signed, words in (
        ("mine", content, None, "mine/settings.json has no signature settings.sig .*fathom sign mine/settings.json"),
        ("mine", content + b" ", signature, "not that of mine/settings.json by .*key.pub; .*fathom sign"),
        ("mine", content, signature[:-1], "is not that of"),
        ("mine", content, signature + b"\0", "is not that of"),
        ("other", content, signature, "other/settings.sig is not that of other/settings.json"),
    ):
        with pytest.raises(ArtifactError, match=words):
            verify(name, came, signed)
    (tmp_path / "message").write_bytes(b"mine/settings.json\n" + content)
    openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", tmp_path / "message", "-out", path)
    assert path.read_bytes() == signature
    with pytest.raises(ArtifactError, match="cannot be signed"):
        sign_settings(tmp_path, private)
