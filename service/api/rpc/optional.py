"""Whether what gRPC needs is installed. Imports none of it."""

from importlib.util import find_spec

from models.errors import BackendError


def check_installed() -> None:
    """Raise BackendError naming the extra that is missing."""
    missing = [name for name in ("grpc", "grpc_health") if find_spec(name) is None]
    if missing:
        raise BackendError(f"a gRPC port was asked for and {missing} are not installed; install the extra 'grpc'")
