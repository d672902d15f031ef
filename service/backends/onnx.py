"""Parts as ONNX Runtime sessions. The primary runtime: any chain is a list of sessions called from Python."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import onnxruntime as ort

from models.artifact import Form
from models.errors import BackendError
from service.backends.parts import Part, Parts

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class _Threads:
    """The pool of threads of this process, made when the first session asks for more than one.

    A model has a session per layer: with a pool each, those that wait spin and take the cores from the one that runs.
    From then on the runtime refuses sessions with threads of their own, and the pool keeps its size.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_shared = False

    def choose(self, options: ort.SessionOptions, num_threads: int) -> None:
        """Let a session have `num_threads`, or those that are shared."""
        with self._lock:
            if num_threads > 1 and not self._is_shared:
                ort.set_global_thread_pool_sizes(num_threads, 1)
                self._is_shared = True
            if self._is_shared:
                options.use_per_session_threads = False
            else:
                options.intra_op_num_threads = num_threads


_THREADS = _Threads()


def open_onnx(
    directory: Path, form: Form, device: str, num_threads: int, prepack: bool = True, fuses: bool = False
) -> Parts:
    """Open the sessions of one model. Raises BackendError if a file does not load or the device is not obtained.

    fuses: keep the files of the parts in memory, to make graphs of chains from.
    """
    graphs: dict[str, bytes] = {}

    def part(name: str) -> Part:
        session = open_session(directory / name, device, num_threads, prepack)
        if fuses and name in form.parts:  # chains are fused later, and the folder may be another by then
            graphs[name] = (directory / name).read_bytes()
        return _part(session)

    def fuse(names: Sequence[str]) -> Part:
        graph = _chain([graphs[name] for name in names])
        return _part(_open_session(graph, "a chain as one graph", device, num_threads, prepack))

    return Parts.of(form, part, fuse if fuses else None)


def open_session(path: Path, device: str, num_threads: int, prepack: bool = True) -> ort.InferenceSession:
    """One session on exactly the provider that was asked for.

    prepack: lay the weights out for speed, in memory of the session's own; else those in a file beside the graph stay
    mapped from it, shared by all who map it.
    The runtime logs an error and falls back to the CPU when a provider cannot load; here that is a BackendError.
    """
    return _open_session(str(path), path.name, device, num_threads, prepack)


def _open_session(graph: str | bytes, name: str, device: str, num_threads: int, prepack: bool) -> ort.InferenceSession:
    wanted = _PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise _refused(wanted, ort.get_available_providers())
    options = ort.SessionOptions()
    _THREADS.choose(options, num_threads)
    options.log_severity_level = 4  # what matters is raised
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=[wanted])
    except Exception as error:  # the runtime's exceptions share no base class
        raise BackendError(f"{name} does not load in ONNX Runtime: {error}") from error
    if session.get_providers()[0] != wanted:
        raise _refused(wanted, session.get_providers())
    return session


def _chain(parts: Sequence[bytes]) -> bytes:
    """The graphs of a chain's parts as one."""
    import onnx  # it takes its time and memory, and only servers that fuse chains need it

    from models.graph import chain

    graphs = {part: onnx.load_from_string(part) for part in set(parts)}
    fused: bytes = chain([graphs[part] for part in parts]).SerializeToString()
    return fused


def _refused(wanted: str, obtained: Sequence[str]) -> BackendError:
    return BackendError(
        f"{wanted} was asked for and {', '.join(obtained)} obtained; "
        "install the gpu extra and a matching CUDA, or use device cpu"
    )


def _part(session: ort.InferenceSession) -> Part:
    names = [entry.name for entry in session.get_inputs()]

    def call(*arrays: Any) -> Sequence[Any]:
        outputs: Sequence[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs

    return call
