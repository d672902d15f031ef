"""Parts as TorchScript modules. Deprecated upstream, still what many people have on disk."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from models.artifact import Form
from models.errors import BackendError
from service.backends.parts import Part, Parts, in_turn
from service.backends.torch_arrays import Opened, TorchArrays, module_part


def open_torchscript(directory: Path, form: Form, device: torch.device) -> Opened:
    """Load the modules of one model, in the precision they were exported in. Raises BackendError if one does not."""
    modules: dict[str, nn.Module] = {}

    def part(name: str) -> Part:
        modules[name] = _load(directory / name, device)
        return module_part(modules[name])

    def fuse(names: Sequence[str]) -> Part:
        return _fuse([modules[name] for name in names])

    return Opened(Parts.of(form, part, fuse), TorchArrays(device))


class _Chain(nn.Module):
    """Modules of one tensor in and one out, one after the other. Compiled, the loop is gone."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, hidden: Tensor) -> Tensor:
        for part in self.parts:
            hidden = part(hidden)
        return hidden


def _fuse(modules: Sequence[nn.Module]) -> Part:
    """Modules as one, if each takes one tensor; else called in turn."""
    if any(len(module.forward.schema.arguments) != 2 for module in modules):  # type: ignore[attr-defined] # and itself
        return in_turn([module_part(module) for module in modules])
    with _quiet():
        return module_part(torch.jit.freeze(torch.jit.script(_Chain(modules).eval())))


def _load(path: Path, device: torch.device) -> nn.Module:
    with _quiet():
        try:
            module: nn.Module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except Exception as error:  # the loader raises RuntimeError, ValueError and more
            raise BackendError(f"{path.name} does not load as TorchScript: {error}") from error
    return module.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Nobody who runs a server can do anything about the deprecation."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield
