"""Parts to machine code by AOTInductor and back. Knows no manifest.

A file runs on processors like the one that it was made on, and making one takes seconds and a C++ compiler; layers are
compiled one by one, so that a deep model takes minutes.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from exporters import pt2
from exporters.parts import Part, Parts, Run, Runs, Tensors, as_tuple
from models.errors import ArtifactError

SUFFIX = ".pt2"


def write(parts: Parts, folder: Path) -> Iterator[str]:
    """Write every part and the whole into `folder`, yielding each file's name. Raises ArtifactError naming the part.

    Also if there is no compiler.
    """
    compiler()
    for part in parts:
        name = f"{part.name}{SUFFIX}"
        _compile(part, folder / name)
        yield name


def compiler() -> str:
    """The command of the C++ compiler that machine code is made with. Raises ArtifactError if there is none."""
    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ArtifactError("there is no C++ compiler; install g++, or name another in CXX") from error


def load(folder: Path, num_layers: int) -> Runs:
    """Load the files as a server does. Raises the runtime's own errors."""
    if not num_layers:
        return Runs.of_whole(_open(folder / f"whole{SUFFIX}"))
    names = [f"layer_{i:03}" for i in range(num_layers)]
    embed, head, whole, *layers = (_open(folder / f"{name}{SUFFIX}") for name in ("embed", "head", "whole", *names))
    return Runs(embed, tuple(layers), head, whole)


def _compile(part: Part, path: Path) -> None:
    program = pt2.program(part)
    try:
        with pt2.quiet():
            aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # the compiler's errors share no class
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{part.name} cannot be compiled: {reason}") from error


def _open(path: Path) -> Run:
    module = aoti_load_package(str(path))

    def run(*inputs: torch.Tensor) -> Tensors:
        with torch.inference_mode():
            return as_tuple(module(*(tensor.contiguous() for tensor in inputs)))  # other strides are not looked at

    return run
