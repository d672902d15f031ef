"""The inference server: engine, backends, search and HTTP. From Python: `serve`, `bind` and `load`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.bound import bind as bind
    from service.loaded import load as load
    from service.running import serve as serve

# Imported when they are asked for: a module of this package that needs little does not wait for the rest.
_WHERE = {"bind": "service.bound", "load": "service.loaded", "serve": "service.running"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
