"""Signatures of versions and of settings: Ed25519 over the manifest, which lists the hash of every file.

`manifest.sig` holds the 64 bytes, as `openssl pkeyutl -sign -rawin` writes and `-verify -rawin` reads them.
`settings.sig` signs a line `<model>/settings.json` and then that file, so that no other model's is taken for it.
That a file is gone, or an older one that was signed in its place, no signature tells.
Needs the package cryptography, and only where a key is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from models.artifact import MANIFEST, SETTINGS, Verify
from models.errors import ArtifactError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE, SETTINGS_SIGNATURE = "manifest.sig", "settings.sig"
# Looks at a model's name, the bytes of its settings and those of their signature; raises ArtifactError.
VerifySettings: TypeAlias = Callable[[str, bytes, bytes | None], None]
_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
_MAKE_PUBLIC = "make it with: openssl pkey -in key.pem -pubout -out key.pub"


def sign(directory: Path, key_file: Path) -> Path:
    """Write the signature of a version's manifest beside it. Raises ArtifactError for a bad key or no manifest."""
    key = _private_key(key_file)
    try:
        return _write(directory / SIGNATURE, key.sign((directory / MANIFEST).read_bytes()))
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be signed: {error}; name a folder <model>/<version>") from error


def sign_settings(directory: Path, key_file: Path) -> Path:
    """Write the signature of a model's settings beside them. Raises ArtifactError for a bad key or no settings."""
    key = _private_key(key_file)
    try:
        message = _about(directory.resolve().name, (directory / SETTINGS).read_bytes())
        return _write(directory / SETTINGS_SIGNATURE, key.sign(message))
    except OSError as error:
        raise ArtifactError(f"{directory / SETTINGS} cannot be signed: {error}; name a <model>/{SETTINGS}") from error


def verifier(key_file: Path) -> Verify:
    """A check of manifests against a public key, read once. Raises ArtifactError if it is none."""
    from cryptography.exceptions import InvalidSignature

    key = _public_key(key_file)

    def verify(directory: Path, content: bytes) -> None:
        try:
            signature = (directory / SIGNATURE).read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{directory} has no signature {SIGNATURE} and FATHOM_REPOSITORY_KEY asks for one; run: "
                f"fathom sign {directory} --key KEY"
            ) from error
        try:
            key.verify(signature, content)
        except InvalidSignature as error:
            raise ArtifactError(
                f"the signature {directory / SIGNATURE} is not that of its manifest by {key_file}; "
                "do not trust these files, or sign them again"
            ) from error

    return verify


def settings_verifier(key_file: Path) -> VerifySettings:
    """A check of settings against a public key, read once. Raises ArtifactError if it is none."""
    from cryptography.exceptions import InvalidSignature

    key = _public_key(key_file)

    def verify(name: str, content: bytes, signature: bytes | None) -> None:
        remedy = f"fathom sign {name}/{SETTINGS} --key KEY"
        if signature is None:
            raise ArtifactError(
                f"{name}/{SETTINGS} has no signature {SETTINGS_SIGNATURE} and FATHOM_REPOSITORY_KEY asks for one; run: "
                f"{remedy}"
            )
        try:
            key.verify(signature, _about(name, content))
        except InvalidSignature as error:
            raise ArtifactError(
                f"the signature {name}/{SETTINGS_SIGNATURE} is not that of {name}/{SETTINGS} by {key_file}; "
                f"do not trust this file, or sign it again: {remedy}"
            ) from error

    return verify


def check_installed() -> None:
    """Raise ArtifactError naming the extra if cryptography is not there."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            f"signatures need the extra 'signed': pip install 'fathom-serving[signed]' ({error})"
        ) from error


def _about(name: str, settings: bytes) -> bytes:
    return f"{name}/{SETTINGS}\n".encode() + settings


def _write(path: Path, signature: bytes) -> Path:
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(signature)
    return hidden.replace(path)


def _public_key(path: Path) -> "Ed25519PublicKey":
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _content(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is no public key in PEM; {_MAKE_PUBLIC}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ArtifactError(f"{path} is a public key of another kind than Ed25519; {_MAKE}")
    return key


def _private_key(path: Path) -> "Ed25519PrivateKey":
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _content(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is no private key in PEM without a password; {_MAKE}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ArtifactError(f"{path} is a private key of another kind than Ed25519; {_MAKE}")
    return key


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the key {path} cannot be read: {error.strerror or error}") from error
