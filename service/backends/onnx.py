"""Parts as ONNX Runtime sessions. The primary runtime: any chain is a list of sessions called from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from models.artifact import Form
from models.errors import BackendError
from service.backends.parts import Part, Parts, unchanged

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_onnx(directory: Path, form: Form, device: str, num_threads: int) -> Parts:
    """Open the sessions of one model. Raises BackendError if a file does not load or the device is not obtained."""

    def part(name: str) -> Part:
        return _part(open_session(directory / name, device, num_threads))

    if form.embed and form.head:
        return Parts(part(form.embed), tuple(part(name) for name in form.layers), part(form.head))
    assert form.whole is not None
    return Parts(unchanged, (), part(form.whole))


def open_session(path: Path, device: str, num_threads: int) -> ort.InferenceSession:
    """One session on exactly the provider that was asked for.

    The runtime logs an error and falls back to the CPU when a provider cannot load; here that is a BackendError.
    """
    wanted = _PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise _refused(wanted, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4  # what matters is raised
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # the runtime's exceptions share no base class
        raise BackendError(f"{path.name} does not load in ONNX Runtime: {error}") from error
    if session.get_providers()[0] != wanted:
        raise _refused(wanted, session.get_providers())
    return session


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
