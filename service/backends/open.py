"""Which backend serves an artifact, imported only when it is needed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from models.artifact import Form, Format, Manifest
from models.errors import BackendError
from models.lm.residual import parse_form
from service.backends.arrays import Arrays, HostArrays
from service.backends.encoders import EncoderBackend
from service.backends.kv import PAGE_SIZE, page_bytes
from service.backends.parts import LanguageBackend, Parts, TensorBackend
from service.backends.protocol import Backend, Dtype
from service.backends.sequences import SequenceBackend

BackendName: TypeAlias = Literal[
    "auto",
    "onnx",
    "torchscript",
    "eager",
    "fake",
    "pt2",
    "aoti",
    "onnx-fp16",
    "onnx-bf16",
    "onnx-int8",
    "onnx-int4",
    "pt2-int8",
    "pt2-int4",
]
Device: TypeAlias = Literal["cpu", "cuda"]
# In order of preference: the fastest runtime whose files are there; fewer bits only where there is nothing else.
_FORMATS: dict[str, Format] = {
    "onnx": "onnx",
    "torchscript": "torchscript",
    "eager": "safetensors",
    "pt2": "pt2",
    "aoti": "aoti",
    "onnx-fp16": "onnx-fp16",
    "onnx-bf16": "onnx-bf16",
    "onnx-int8": "onnx-int8",
    "onnx-int4": "onnx-int4",
    "pt2-int8": "pt2-int8",
    "pt2-int4": "pt2-int4",
}
# Weights of a layer from which on several threads compute it sooner than one.
_LARGE_BYTES = 4 << 20
# Weights that all graphs of whole chains may have, beside those of the layers. Of a model that has more, the calls of
# layers are short against what they compute, and a second copy of the weights is not.
_FUSED_BYTES = 16 << 20
_MOST_FUSED = 64


def open_backend(
    manifest: Manifest,
    directory: Path,
    name: BackendName = "auto",
    device: Device = "cpu",
    num_threads: int = 1,
    num_pages: int = 0,
    page_size: int = PAGE_SIZE,
    dtype: Dtype = "auto",
    prepack: bool = True,
) -> Backend:
    """Load one artifact, with as many threads as suit it where that is 0.

    Raises BackendError if it has no such form or the runtime refuses it.
    """
    chosen = choose_backend(manifest, name)
    threads = num_threads or threads_for(manifest, chosen, len(os.sched_getaffinity(0)))
    parts, arrays = _open_parts(manifest, directory, chosen, _Compute(device, threads, dtype, prepack))
    if manifest.language:
        assert manifest.layers is not None
        residual = None if chosen == "fake" else parse_form(manifest.layers.residual_form)
        return LanguageBackend(parts, manifest.language, arrays, num_pages, page_size, residual)
    if manifest.encoder:
        return EncoderBackend(parts, manifest.encoder, manifest.outputs, arrays)
    max_fused = 0 if chosen == "fake" else _max_fused(manifest, _FORMATS[chosen])
    if manifest.sequence:
        return SequenceBackend(parts, manifest.sequence, manifest.outputs, arrays, max_fused)
    return TensorBackend(parts, manifest.inputs, manifest.outputs, arrays, max_fused)


def choose_backend(manifest: Manifest, name: BackendName) -> BackendName:
    """The backend that will serve this artifact. Raises BackendError naming the forms it has."""
    if name == "fake":
        return name
    for candidate, form in _FORMATS.items():
        if form in manifest.forms and name in ("auto", candidate):
            return candidate  # type: ignore[return-value]
    raise BackendError(
        f"model {manifest.name!r} has the forms {sorted(manifest.forms)}, none for backend {name!r}; export it again"
    )


def files_of(manifest: Manifest, name: BackendName) -> set[str]:
    """The files that a backend opens, and those of the text; all there are for the fake one. Raises BackendError."""
    chosen = choose_backend(manifest, name)
    if chosen == "fake":
        return set(manifest.files)
    form, language = _opened(manifest, _FORMATS[chosen]), manifest.language
    parts = _with_data(manifest, form.parts) if form.has_parts else _beside(manifest, form)
    whole = _with_data(manifest, [form.whole]) if form.whole else ()
    text = (language.tokenizer, language.chat_template) if language else ()
    return {*parts, *whole, *(file for file in text if file)}


def threads_for(manifest: Manifest, name: BackendName, num_cores: int) -> int:
    """All cores if the weights of a layer (of all there is, where there are no layers) are large, one otherwise.

    Below some megabytes the threads cost more to wake than they compute.
    """
    form = manifest.forms.get(_FORMATS[name]) if name in _FORMATS else None
    if form is None:
        return 1
    files = _with_data(manifest, form.layers) if form.layers else _beside(manifest, form)
    return num_cores if _num_bytes(manifest, files) >= _LARGE_BYTES * max(manifest.num_layers, 1) else 1


def _num_bytes(manifest: Manifest, names: Sequence[str]) -> int:
    return sum(manifest.files[name].size_bytes for name in names)


def _with_data(manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Files, and those beside them in which large ones keep their weights."""
    return [*names, *(f"{name}.data" for name in names if f"{name}.data" in manifest.files)]


def _beside(manifest: Manifest, form: Form) -> list[str]:
    """The files in the folder of a whole graph: the graph and its weights, or the shards of a checkpoint."""
    assert form.whole is not None
    folder = form.whole.rpartition("/")[0]
    return [name for name in manifest.files if name.rpartition("/")[0] == folder]


def refuse_both_runtimes() -> None:
    """Raise BackendError if both onnxruntime wheels are installed: they overwrite each other's files."""
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and share one folder; uninstall both, "
            "then install exactly one of the extras cpu, gpu, onnx"
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def item_bytes(manifest: Manifest, name: BackendName, dtype: Dtype) -> int:
    """Bytes of a number in the keys and values of a model, at most: where its files decide, those of float32."""
    is_half = dtype in ("bfloat16", "float16") and choose_backend(manifest, name) == "eager"
    return 2 if is_half else 4


def num_pages_within(manifest: Manifest, max_rows: int, max_bytes: int, page_size: int, item_bytes: int = 4) -> int:
    """Pages for `max_rows` sequences of full length on the full chain, as far as `max_bytes` go.

    Raises BackendError if they do not go as far as one such sequence.
    """
    if manifest.language is None:
        return 0
    size = page_bytes(manifest.language, page_size, item_bytes)
    one = manifest.num_layers * -(-manifest.language.max_length // page_size)
    if max_bytes < one * size:
        raise BackendError(
            f"model {manifest.name!r} needs {one} pages of {size} bytes for one sequence of full length on the full "
            f"chain and {max_bytes} bytes hold {max_bytes // size}; raise FATHOM_KV_BYTES"
        )
    return min(max_bytes // size, max_rows * one)


@dataclass(frozen=True, slots=True)
class _Compute:
    """Where and how a runtime computes."""

    device: Device
    num_threads: int
    dtype: Dtype
    prepack: bool


def _opened(manifest: Manifest, format: Format) -> Form:
    """What is opened of a form: of a stack the graph of the full chain only if it saves fusing that."""
    form = manifest.forms[format]
    is_needed = not form.has_parts or (manifest.kind == "tensor" and _max_fused(manifest, format))
    return form if is_needed else form.model_copy(update={"whole": None})


def _max_fused(manifest: Manifest, format: Format) -> int:
    """Graphs of chains that may be kept: of rows of tensors through small layers, or steps where ONNX has the graph.

    What the file of the full chain takes up says nothing: it may refer to weights beside the parts.
    """
    form = manifest.forms[format]
    is_fused = manifest.kind == "tensor" or (manifest.kind == "sequence" and format.startswith("onnx"))
    if not is_fused or not form.has_parts:
        return 0
    return min(_FUSED_BYTES // max(_num_bytes(manifest, _with_data(manifest, form.parts)), 1), _MOST_FUSED)


def _open_parts(manifest: Manifest, directory: Path, name: BackendName, compute: _Compute) -> tuple[Parts, Arrays]:
    if name == "fake":
        from service.backends.fake import open_fake

        return open_fake(manifest), HostArrays()
    form = _opened(manifest, _FORMATS[name])
    if name.startswith("onnx"):
        from service.backends.onnx import open_onnx

        fuses = _max_fused(manifest, _FORMATS[name]) > 0
        return open_onnx(directory, form, compute.device, compute.num_threads, compute.prepack, fuses), HostArrays()
    return _open_torch(directory, form, name, compute)


def _open_torch(directory: Path, form: Form, name: BackendName, compute: _Compute) -> tuple[Parts, Arrays]:
    import torch

    from service.backends.aoti import open_aoti
    from service.backends.eager import open_eager
    from service.backends.pt2 import open_pt2
    from service.backends.torch_arrays import torch_device, torch_dtype
    from service.backends.torchscript import open_torchscript

    torch.set_num_threads(compute.num_threads)
    opened = torch_device(compute.device)
    if name == "eager":
        return open_eager(directory, form, opened, torch_dtype(compute.dtype, opened))
    loaders = {"torchscript": open_torchscript, "pt2": open_pt2, "aoti": open_aoti}
    return loaders[name.partition("-")[0]](directory, form, opened)
