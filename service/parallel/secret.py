"""The secret by which a leader and its ranks on other machines know each other: a file that both have."""

from pathlib import Path

from models.errors import BackendError

_MIN_BYTES = 16


def read_secret(path: Path) -> bytes:
    """What leader and ranks share. Raises BackendError."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise BackendError(f"the ranks' secret {path} cannot be read: {error.strerror or error}") from error
    if len(secret) < _MIN_BYTES:
        raise BackendError(f"the ranks' secret {path} has {len(secret)} bytes; write {_MIN_BYTES} or more random ones")
    return secret
