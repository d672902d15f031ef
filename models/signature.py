"""Signatures of versions: Ed25519 over the bytes of the manifest, which lists the hash of every file.

`manifest.sig` holds the 64 bytes, as `openssl pkeyutl -sign -rawin` writes and `-verify -rawin` reads them. Needs the
package cryptography, and only where a key is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from models.artifact import MANIFEST, Verify
from models.errors import ArtifactError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
_MAKE_PUBLIC = "make it with: openssl pkey -in key.pem -pubout -out key.pub"


def sign(directory: Path, key_file: Path) -> Path:
    """Write the signature of a version's manifest beside it. Raises ArtifactError for a bad key or no manifest."""
    key = _private_key(key_file)
    try:
        content = (directory / MANIFEST).read_bytes()
        signature = directory / SIGNATURE
        hidden = directory / f".{SIGNATURE}"
        hidden.write_bytes(key.sign(content))
        return hidden.replace(signature)
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be signed: {error}; name a folder <model>/<version>") from error


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


def check_installed() -> None:
    """Raise ArtifactError naming the extra if cryptography is not there."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            f"signatures need the extra 'signed': pip install 'fathom-serving[signed]' ({error})"
        ) from error


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
