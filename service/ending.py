"""What is to be closed before the interpreter ends, where nobody closed it: servers and models that run in threads."""

# What is registered first is called last: executors must outlive what is closed here.
import concurrent.futures.thread  # noqa: F401
import threading
from collections.abc import Callable
from functools import cache

_open: dict[int, Callable[[], None]] = {}


def close_at_end(owner: object, close: Callable[[], None]) -> None:
    """Call `close` when the main thread ends, unless `forget` is called before."""
    _register()
    _open[id(owner)] = close


def forget(owner: object) -> None:
    """Its owner was closed."""
    _open.pop(id(owner), None)


@cache
def _register() -> None:
    # `atexit` would be too late: by then executors take no more work, and closing a model is done in one's thread.
    threading._register_atexit(_close_all)  # type: ignore[attr-defined]


def _close_all() -> None:
    for close in list(_open.values()):
        close()
