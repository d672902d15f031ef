"""The formats of a model's parts: written into a folder, loaded again, held against eager torch.

Knows which formats there are and what the manifest says of each; knows neither how one is written nor who reads it.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol, TypeAlias

from exporters import aoti, onnx, precision, pt2, quantized, safetensors, scan, torchscript
from exporters.heldout import HeldOut
from exporters.parts import Parts, Runs
from exporters.verify import TOLERANCE, verify
from models.artifact import Form, Format
from models.errors import ArtifactError, FathomError

# What happened, which step of the export this was, how many there are.
Report: TypeAlias = Callable[[str, int, int], None]

_WRITERS: Mapping[Format, Callable[[Parts, Path], Iterator[str]]] = {
    "onnx": onnx.write,
    "torchscript": torchscript.write,
    "pt2": pt2.write,
    "aoti": aoti.write,
}
# Forms of fewer bits, and how far final outputs may be from eager torch's, as a part of the largest of them. Beyond,
# something is broken; whether the answers are still good is what `exporters.heldout` measures.
LOSSY: Mapping[Format, float] = {
    "onnx-fp16": 0.02,
    "onnx-bf16": 0.1,
    "onnx-int8": 0.3,
    "onnx-int4": 2.0,
    "pt2-int8": 0.3,
    "pt2-int4": 2.0,
}
assert LOSSY.keys() == precision.BITS.keys() | quantized.BITS.keys()


class _Runtime(Protocol):
    """A module that opens files."""

    SUFFIX: str

    def load(self, folder: Path, num_layers: int) -> Runs: ...


_RUNTIMES: Mapping[Format, _Runtime] = {
    "onnx": onnx,
    "torchscript": torchscript,
    "pt2": pt2,
    "aoti": aoti,
    **dict.fromkeys(precision.BITS, onnx),
    **dict.fromkeys(quantized.BITS, pt2),
}


def write_forms(
    parts: Parts,
    checkpoint: Path,
    folder: Path,
    formats: Sequence[Format],
    report: Report,
    heldout: HeldOut | None = None,
    max_loss: float = 1.0,
) -> tuple[dict[Format, Form], dict[Format, str]]:
    """The formats that could be written into `folder` and verified, and why the others could not."""
    forms: dict[Format, Form] = {}
    refused: dict[Format, str] = {}
    files = {"safetensors": len(safetensors.files(checkpoint))}
    steps, total = count(1), sum(1 + files.get(format, len(parts.layers) + 3) for format in formats)
    for format in formats:
        try:
            for file in _write_form(format, parts, checkpoint, folder / format):
                report(f"{format}/{file}", next(steps), total)
            forms[format] = _verified(format, parts, folder / format)
            if format in LOSSY and heldout:
                forms[format] = _weighed(forms[format], format, folder, heldout, max_loss)
            report(f"{format} verified", next(steps), total)
        except ArtifactError as error:
            refused[format] = str(error)
            forms.pop(format, None)
            shutil.rmtree(folder / format)
    return forms, refused


def _write_form(format: Format, parts: Parts, checkpoint: Path, folder: Path) -> Iterator[str]:
    folder.mkdir()
    if format in precision.BITS:
        return precision.write(parts, folder.parent / "onnx", folder, format)
    if format == "onnx-scan":
        return scan.write(parts, folder.parent / "onnx", folder)
    if format in quantized.BITS:
        return quantized.write(parts, folder, format)
    if format == "safetensors":
        return safetensors.write(checkpoint, folder)
    return _WRITERS[format](parts, folder)


def _verified(format: Format, parts: Parts, folder: Path) -> Form:
    """The manifest's entry of a written format. Raises ArtifactError if it does not load or is not what torch gives."""
    if format == "safetensors":  # the very files that `parts` were read from
        safetensors.check(parts)
        return Form(whole=f"{format}/{safetensors.entry(folder)[0]}", tolerance=0.0)
    if format == "onnx-scan":
        return _scanned(parts, folder)
    is_lossy, tolerance = format in LOSSY, LOSSY.get(format, TOLERANCE)
    measured = verify(_load(format, folder, len(parts.layers)), parts, tolerance, is_lossy)
    *files, whole = (f"{format}/{part.name}{_RUNTIMES[format].SUFFIX}" for part in parts)
    embed, *layers, head = files or (None, None)
    return Form(
        embed=embed,
        layers=tuple(name for name in layers if name),
        head=head,
        whole=whole,
        tolerance=tolerance,
        is_relative=is_lossy,
        measured=measured,
    )


def _scanned(parts: Parts, folder: Path) -> Form:
    try:
        run = scan.load(folder)
    except Exception as error:  # the runtime's errors share no class
        raise ArtifactError(f"the written {scan.NAME} does not load: {error}") from error
    return Form(whole=f"{folder.name}/{scan.NAME}", tolerance=TOLERANCE, measured=scan.verify(run, parts, TOLERANCE))


def _weighed(form: Form, format: Format, folder: Path, heldout: HeldOut, max_loss: float) -> Form:
    """The entry with what the form loses on held-out samples. Raises ArtifactError if that is more than `max_loss`."""
    assert form.whole is not None
    runtime = onnx if format in precision.BITS else pt2
    loss = heldout.loss(runtime.open_run(folder / form.whole))
    if loss.full - loss.form > max_loss:
        raise ArtifactError(
            f"{format} answers {loss.form:.1%} of {loss.samples} held-out samples rightly, eager torch "
            f"{loss.full:.1%}; more than {max_loss:.1%} lost; pass --allow-loss to have it nevertheless"
        )
    return form.model_copy(update={"loss": loss})


def _load(format: Format, folder: Path, num_layers: int) -> Runs:
    try:
        return _RUNTIMES[format].load(folder, num_layers)
    except FathomError:
        raise
    except Exception as error:  # runtimes share no error class
        raise ArtifactError(f"the written {format} files do not load: {error}") from error
