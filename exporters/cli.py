"""The commands `fathom export`, `import` and `convert`. Arguments, a progress bar and a summary; nothing else.

What takes long to import is imported when a command runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from exporters.forms import Report
    from exporters.publish import Exported

Repository = Annotated[Path, typer.Option(help="Folder of served models.")]
ModelVersion = Annotated[str, typer.Option(help="Version to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the version if it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print directory, manifest and refused formats as JSON.")]


def export(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoint directories, or names of shipped models.", metavar="MODEL...")
    ],
    formats: Annotated[
        str,
        typer.Option(
            help="What to write, separated by commas; also onnx-fp16, onnx-bf16, onnx-int8, onnx-int4, onnx-scan, pt2, "
            "pt2-int8, pt2-int4, aoti."
        ),
    ] = "onnx,torchscript,safetensors",
    repository: Repository = Path("repository"),
    name: Annotated[str | None, typer.Option(help="Name to serve it under; else the directory's.")] = None,
    model_version: ModelVersion = "1",
    overwrite: Overwrite = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Keep a form of fewer bits whatever it loses on held-out samples.")
    ] = False,
    timing: Annotated[
        bool, typer.Option("--timing", help="Take weights not trained in their residual form: for measuring time only.")
    ] = False,
    as_json: AsJson = False,
    is_listing: Annotated[
        bool, typer.Option("--list", help="Only try every format on the first layer and say what the model can become.")
    ] = False,
) -> None:
    """Write trained models as files that serve, each format held against eager torch."""
    if name and len(checkpoints) > 1:
        raise typer.BadParameter(f"{len(checkpoints)} models cannot all be called {name!r}; export them one by one")
    for checkpoint in checkpoints:
        if is_listing:
            _list(checkpoint, as_json)
            continue
        with _progress(f"export {checkpoint}") as report:
            from exporters.export import export_checkpoint, find_checkpoint, parse_formats

            exported = export_checkpoint(
                find_checkpoint(checkpoint),
                repository,
                parse_formats(formats),
                name,
                model_version,
                overwrite,
                report,
                allow_loss=allow_loss,
                timing=timing,
            )
        _show(exported, as_json)


def adopt(
    source: Annotated[
        str,
        typer.Argument(help="A Hugging Face directory, the id of a hub model, an .onnx or a TorchScript .pt file."),
    ],
    name: Annotated[str, typer.Option(help="Name to serve it under.")],
    repository: Repository = Path("repository"),
    given: Annotated[
        list[str] | None, typer.Option("--input", help="What the file does not say, as NAME:DATATYPE:SHAPE.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    model_version: ModelVersion = "1",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Serve what somebody else trained: a checkpoint directory layer by layer, a graph as a whole."""
    from exporters.adopt import adopt_checkpoint, adopt_file, parse_input
    from exporters.hub import is_hub_id

    if Path(source).is_dir() or (is_hub_id(source) and not Path(source).exists()):
        with _progress(f"import {source}") as report:
            exported = adopt_checkpoint(source, revision, given, repository, name, model_version, overwrite, report)
    else:
        specs = [parse_input(text) for text in given or ()]
        exported = adopt_file(Path(source), repository, name, model_version, specs, overwrite)
    _show(exported, as_json)


def convert(
    model: Annotated[str, typer.Argument(help="Checkpoint directory of a decoder, or the name of a shipped model.")],
    residual: Annotated[
        str, typer.Option(help="ladder, 'ladder(slot)', desync-2x@4 for 4 ranks, desync-4x@4, or upper-bound.")
    ] = "ladder",
    out: Annotated[Path | None, typer.Option(help="Directory to write.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Ladder layers of a hybrid, such as 16-31; else all of them.")
    ] = None,
    is_asking: Annotated[
        bool, typer.Option("--suggest", help="Only say how much each layer alone changes as a ladder layer.")
    ] = False,
    samples: Annotated[
        Path | None, typer.Option(help="JSONL file of prompts for --suggest; else the model's held-out one.")
    ] = None,
) -> None:
    """Write a decoder in another residual form, to be trained in it: the weights as they are, another config.json."""
    from exporters.export import find_checkpoint
    from models.errors import InputError

    checkpoint = find_checkpoint(model)
    if is_asking:
        _suggest(checkpoint, samples)
        return
    if out is None:
        raise InputError("nothing says where to write; name --out, or ask with --suggest")
    from exporters import convert as forms

    written = forms.convert(checkpoint, out, residual if layers is None else f"{residual}:{layers}")
    typer.echo(f"{out}: {written.text}, its weights not trained in it")


def _suggest(checkpoint: Path, samples: Path | None) -> None:
    """Print the layers, those that change least first."""
    from exporters.sensitivity import suggest

    found = suggest(checkpoint, samples)
    typer.echo("layer  nats a token from the standard form, each converted alone")
    for layer in sorted(range(len(found)), key=found.__getitem__):
        typer.echo(f"{layer:>5}  {found[layer]:.4f}")


def _list(model: str, as_json: bool) -> None:
    """Print what a model can become, and why not."""
    import json
    from dataclasses import asdict

    with _progress(f"try {model}") as report:
        from exporters.export import find_checkpoint
        from exporters.possible import try_formats

        found = try_formats(find_checkpoint(model), report)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    depth = f"{found.num_layers} layers, the first one tried" if found.num_layers else "served whole"
    typer.echo(f"{model}: {found.kind}, {depth}")
    typer.echo(f"  {'safetensors':<12} yes  the checkpoint itself")
    for format, tried in found.written.items():
        size = f"{tried.size_bytes / 1e6:.2f} MB{' a layer' if tried.is_layer else ''}"
        typer.echo(f"  {format:<12} yes  {size}, differs from eager torch by at most {tried.max_abs:.1e}")
    for format, reason in found.refused.items():
        typer.echo(f"  {format:<12} no   {reason}")
    for format, remark in found.untried.items():
        typer.echo(f"  {format:<12} ?    {remark}")


@contextmanager
def _progress(title: str) -> Iterator["Report"]:
    """A bar on standard error, so that standard output holds the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda what, done, total: progress.update(
            task, description=f"{title}: {what}", completed=done, total=total
        )


def _show(exported: "Exported", as_json: bool) -> None:
    """Print the result; exits with 1 if a format that was asked for is not in it."""
    _warn(exported)
    if as_json:
        _show_json(exported)
    else:
        _show_table(exported)
    if exported.refused:
        raise typer.Exit(1)


def _warn(exported: "Exported") -> None:
    """Say on standard error what the checkpoint asks of generation and no request gets here."""
    language = exported.manifest.language
    for said in (language and language.sampling and language.sampling.not_served) or ():
        typer.echo(f"WARNING: generation_config.json says {said}; that is not served, answers come without", err=True)


def _show_json(exported: "Exported") -> None:
    import json

    summary = {
        "directory": str(exported.directory),
        "manifest": exported.manifest.model_dump(mode="json"),
        "refused": dict(exported.refused),
    }
    typer.echo(json.dumps(summary, indent=2))


def _show_table(exported: "Exported") -> None:
    manifest = exported.manifest
    size = sum(record.size_bytes for record in manifest.files.values())
    typer.echo(f"{manifest.name} {manifest.version}: {len(manifest.files)} files, {size / 1e6:.1f} MB")
    for tensors, arrow in ((manifest.inputs, "in"), (manifest.outputs, "out")):
        for tensor in tensors:
            typer.echo(f"  {arrow:<4}{tensor.name} {tensor.datatype} {list(tensor.shape)}")
    for format, form in manifest.forms.items():
        largest = max((difference.max_abs for difference in form.measured), default=None)
        measured = "as it was" if largest is None else f"differs from eager torch by at most {largest:.1e}"
        lost = "" if form.loss is None else f"; {form.loss.metric} {form.loss.form:.1%}, full {form.loss.full:.1%}"
        typer.echo(f"  {format}: {measured}{lost}")
    for format, reason in exported.refused.items():
        typer.echo(f"  {format} REFUSED: {reason}", err=True)
    typer.echo(f"  {exported.directory}")
