"""Fathom from Python: a client of its servers, and models of this process served or run.

    from fathom import Client, serve, load

Each name is imported when it is asked for; a program that is a client alone loads nothing of the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service import bind as bind
    from service import load as load
    from service import serve as serve
    from service.client.concurrent import AsyncClient as AsyncClient
    from service.client.errors import BusyError as BusyError
    from service.client.errors import ClientError as ClientError
    from service.client.errors import InvalidError as InvalidError
    from service.client.errors import ProblemError as ProblemError
    from service.client.errors import ServerError as ServerError
    from service.client.errors import TimeOverError as TimeOverError
    from service.client.errors import UnavailableError as UnavailableError
    from service.client.errors import UnknownError as UnknownError
    from service.client.errors import UnreachableError as UnreachableError
    from service.client.retry import Retries as Retries
    from service.client.sync import Client as Client

_WHERE = {
    **dict.fromkeys(("bind", "load", "serve"), "service"),
    "AsyncClient": "service.client.concurrent",
    "Client": "service.client.sync",
    "Retries": "service.client.retry",
    **dict.fromkeys(
        (
            "BusyError",
            "ClientError",
            "InvalidError",
            "ProblemError",
            "ServerError",
            "TimeOverError",
            "UnavailableError",
            "UnknownError",
            "UnreachableError",
        ),
        "service.client.errors",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
