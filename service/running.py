"""Models of this process behind HTTP: `serve`, for scripts, notebooks and tests."""

import asyncio
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self, overload

from models.artifact import list_versions
from models.errors import BackendError, InputError
from service import server
from service.app import create_app
from service.bound import Bound, Tensors, bind
from service.ending import close_at_end, forget
from service.settings import Settings, read_settings

_TICK_S = 0.005


class Running:
    """A server in a thread of this process. Close it, or leave its `with` block: what it accepted is answered first."""

    def __init__(self, settings: Settings, bound: Mapping[str, Bound], left: ExitStack) -> None:
        """Returns once every model was tried; `left` is closed at the end. Raises AddressError or BackendError."""
        listener = server.prepare(settings)
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        app = create_app(settings, bound)
        self._server, self._lifecycle = server.server_of(app, settings), app.state.lifecycle
        # A daemon, for the interpreter waits for other threads before it tells anyone that it ends.
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="fathom-server", daemon=True)
        self._thread.start()
        self._left = left.pop_all()
        close_at_end(self, self.close)
        while not self._lifecycle.is_loaded:
            if not self._thread.is_alive():
                self.close()
                raise BackendError("the server did not start; the log says why")
            time.sleep(_TICK_S)

    def close(self) -> None:
        """Answer what was accepted, then stop. Called again, it waits for the same."""
        forget(self)
        if not self._server.should_exit:
            self._server.handle_exit(signal.SIGTERM, None)
        self._thread.join()
        self._left.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@overload
def serve(
    model: Any = ...,
    /,
    *,
    block: Literal[False],
    name: str | None = ...,
    inputs: Tensors | None = ...,
    outputs: Tensors | None = ...,
    repository: Path | str | None = ...,
    **settings: Any,
) -> Running: ...


@overload
def serve(
    model: Any = ...,
    /,
    *,
    block: Literal[True] = ...,
    name: str | None = ...,
    inputs: Tensors | None = ...,
    outputs: Tensors | None = ...,
    repository: Path | str | None = ...,
    **settings: Any,
) -> None: ...


def serve(
    model: Any = None,
    /,
    *,
    block: bool = True,
    name: str | None = None,
    inputs: Tensors | None = None,
    outputs: Tensors | None = None,
    repository: Path | str | None = None,
    **settings: Any,
) -> Running | None:
    """Serve a function or a torch module over HTTP: batched, measured, drained at the end.

    `inputs` and `outputs` are as `bind` takes them; `name` is the function's own if left out. Several models are a dict
    of what `bind` makes. With a `repository` its models serve beside. `settings` are those of the environment by their
    names without the prefix, such as `port=8000` or `max_batch_rows=32`. Serves until SIGTERM or SIGINT; without
    `block` it returns a server that runs in a thread, and leaves signals and logs alone.
    Raises InputError, ArtifactError, SettingsError, AddressError or BackendError.
    """
    bound = {} if model is None else _bound(model, name, inputs, outputs)
    if not bound and repository is None:
        raise InputError(
            "nothing to serve came; give a function, a module, a dict of what bind() makes or a repository"
        )
    with ExitStack() as left:
        # Of nobody else's: what would lie in a repository of the current folder was not asked for.
        folder = repository or left.enter_context(tempfile.TemporaryDirectory(prefix="fathom-"))
        chosen = read_settings(None, repository=folder, **settings)
        _check_names(bound, chosen.folder)
        if not block:
            return Running(chosen, bound, left)
        _refuse_event_loop()
        server.serve(chosen, bound)
    return None


def _bound(model: Any, name: str | None, inputs: Tensors | None, outputs: Tensors | None) -> Mapping[str, Bound]:
    if isinstance(model, Mapping | Bound):
        if inputs is not None or outputs is not None:
            raise InputError("inputs or outputs came beside what bind() made; say them there")
        named = model if isinstance(model, Mapping) else {name or model.name: model}
        for key, one in named.items():
            if not isinstance(one, Bound):
                raise InputError(f"model {key!r} is {one!r:.60}; make it one with bind(model, inputs=...)")
        return named
    if inputs is None:
        raise InputError("no inputs came; say what the model takes, like inputs={'x': ('FP32', [-1, 3])}")
    one = bind(model, inputs, outputs)
    return {name or one.name: one}


def _check_names(bound: Mapping[str, Bound], repository: Path) -> None:
    for name, one in bound.items():
        one.manifest(name)
    if taken := sorted(bound.keys() & list_versions(repository).keys()):
        raise InputError(f"models {taken} are in {repository} already; serve them under other names")


def _refuse_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InputError("this thread runs an event loop, as notebooks do; serve with block=False")
