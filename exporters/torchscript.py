"""Parts to TorchScript files and back. Knows nothing of chains or manifests.

Deprecated upstream, still what many runtimes load. Scripted where the compiler takes the module; traced otherwise, and
a trace that froze a shape is what `exporters.verify` finds.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from exporters.parts import Part, Parts, Run, Runs, Tensors, as_tuple
from models.errors import ArtifactError

SUFFIX = ".pt"


def write(parts: Parts, folder: Path) -> Iterator[str]:
    """Write every part and the whole into `folder`, yielding each file's name. Raises ArtifactError naming the part."""
    for part in parts:
        name = f"{part.name}{SUFFIX}"
        with quiet():
            torch.jit.save(_compile(part), folder / name)
        yield name


def load(folder: Path, num_layers: int) -> Runs:
    """Load the files as a server does. Raises the runtime's own errors."""
    if not num_layers:
        return Runs.of_whole(_open(folder / f"whole{SUFFIX}"))
    names = [f"layer_{i:03}" for i in range(num_layers)]
    embed, head, whole, *layers = (_open(folder / f"{name}{SUFFIX}") for name in ("embed", "head", "whole", *names))
    return Runs(embed, tuple(layers), head, whole)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the deprecation of TorchScript, which is exported on purpose, from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


def _compile(part: Part) -> Any:
    try:
        return torch.jit.script(part.module)
    except Exception:  # the compiler raises RuntimeError, NotSupportedError, OSError and more for what it cannot read
        return _trace(part.name, part.module, part.examples)


def _trace(name: str, module: nn.Module, examples: Tensors) -> Any:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", TracerWarning)  # what it warns of is measured by verify
            return torch.jit.trace(module, examples, check_trace=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ArtifactError(f"{name} can neither be scripted nor traced: {error}") from error


def _open(path: Path) -> Run:
    with quiet():
        module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def run(*inputs: torch.Tensor) -> Tensors:
        with torch.inference_mode():
            return as_tuple(module(*inputs))

    return run
