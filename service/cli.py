"""The command `fathom`. Other packages add their own commands through the entry point group `fathom.commands`.

What only one command needs is imported in it: a server's start and its memory pay for every module that is not.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from models.errors import FathomError
from service import cli_bench, cli_chains

if TYPE_CHECKING:
    from rich.progress import Progress

_T = TypeVar("_T")
_COMMANDS = "fathom.commands"

Repository = Annotated[str | None, typer.Option(help="Folder or URL of models; FATHOM_REPOSITORY, else ./repository.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ChainOption = Annotated[str, typer.Option(help="'full', or layers such as '0-3,5,5,7-11'.")]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Serve, search and export models that choose their own depth."
)

app.add_typer(cli_chains.app, name="chains")
app.add_typer(cli_bench.app, name="bench")


@app.command()
def serve(
    repository: Repository = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port for gRPC; none without it.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, onnx, torchscript, eager or fake.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="Ranks that share each language model.")] = None,
    pipeline_parallel: Annotated[int | None, typer.Option(help="Stages of layers, each of so many ranks.")] = None,
    ranks_address: Annotated[str | None, typer.Option(help="tcp://host:port for ranks that torchrun starts.")] = None,
) -> None:
    """Serve the models of a repository over HTTP, and over gRPC where it has a port."""
    from service import server
    from service.settings import read_settings

    said: dict[str, object] = {"host": host, "port": port, "grpc_port": grpc_port, "backend": backend, "device": device}
    said |= {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    said |= {"ranks_address": ranks_address}
    server.serve(read_settings(None, repository=repository, **said))


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Name of a model in the repository.")],
    inputs: Annotated[list[str], typer.Argument(help="Texts, or rows as JSON lists.")],
    chain: ChainOption = "full",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 64,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """Answer inputs in this process, without a server."""
    from service.local import predict_locally

    body = {"model": model, "inputs": [_value(text) for text in inputs], "chain": chain}
    answer = _wait(predict_locally(repository, {**body, "parameters": {"max_new_tokens": max_new_tokens}}))
    if as_json:
        print(json.dumps(answer))
        return
    for output in answer["outputs"]:
        said = output["text"] if "text" in output else json.dumps(output["outputs"])
        print(f"{said}\t{output['layers_executed']} of {output['layers_full']} layers")


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Name of a model in the repository.")],
    sample: Annotated[str | None, typer.Argument(help="A text, or a row as a JSON list.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer wanted; without it, the full chain's answer.")] = None,
    simulations: Annotated[int, typer.Option(min=1, help="Chains to try.")] = 200,
    seconds: Annotated[float | None, typer.Option(help="Time to spend at most.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same answer.")] = 0,
    explain: Annotated[Path | None, typer.Option(help="SVG file to draw the search tree and the chain into.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="JSON lines to study instead of one sample.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; the same again goes on with it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to study, evenly from families and levels.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, or actors on Ray.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Ray cluster to study on; 'local' starts one.")] = None,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """Search the chain of one sample in this process, or study a data set."""
    from service.local import search_locally

    if dataset is not None and out is not None:
        if any(one is not None for one in (sample, target, seconds, explain)):
            raise typer.BadParameter("a study takes no sample, target, seconds or explain")
        page = _study(repository, model, dataset, out, limit, processes, ray, simulations, seed)
        print(page.with_suffix(".json").read_text() if as_json else page)
        return
    if sample is None or any(one is not None for one in (dataset, out, limit, ray)):
        raise typer.BadParameter("name a sample; or --dataset and --out for a study")
    body = {
        "model": model,
        "input": _value(sample),
        "target": int(target) if target and _is_row(sample) and target.isdecimal() else target,
        "budget": {"simulations": simulations, "seconds": seconds},
        "seed": seed,
        "include_tree": explain is not None,
    }
    with progress_bar() as progress:
        task = progress.add_task("simulations", total=simulations)
        result = _wait(search_locally(repository, body, lambda done: progress.update(task, completed=done)))
    if explain is not None:
        from service.study.explain import write_picture

        write_picture(explain, result)
    print(json.dumps(result) if as_json else _told(result))


@app.command()
def models(repository: Repository = None, as_json: AsJson = False) -> None:
    """List the models of a repository; every file's hash is checked."""
    from rich.console import Console
    from rich.table import Table

    from service.local import list_locally

    found = list_locally(repository)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("model", "version", "kind", "layers", "formats", "state")
    for one in found:
        table.add_row(*(str(one[key]) for key in ("name", "version", "kind", "num_layers", "formats", "state")))
    Console().print(table)


def main() -> None:
    """Entry point: our errors are one line on standard error and exit code 1."""
    # ONNX Runtime reads this when it is imported, and would otherwise report its use to its maker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for entry in metadata.entry_points(group=_COMMANDS):
        app.command(entry.name)(_loaded(entry))
    try:
        app()
    except FathomError as error:
        _fail(str(error))


def _study(
    repository: str | None,
    model: str,
    dataset: Path,
    out: Path,
    limit: int | None,
    processes: int,
    ray: str | None,
    simulations: int,
    seed: int,
) -> Path:
    from service.settings import read_settings
    from service.study.run import Study, run_study
    from service.study.sample import StudyConfig

    settings, config = read_settings(repository=repository), StudyConfig(simulations=simulations, seed=seed)
    study = Study(settings, model, dataset, out, limit, processes, ray, config)
    with progress_bar() as progress:
        task = progress.add_task("samples", total=None)
        return run_study(study, lambda done, total: progress.update(task, completed=done, total=total))


def _loaded(entry: metadata.EntryPoint) -> Callable[..., Any]:
    command: Callable[..., Any] = entry.load()
    return command


def _fail(message: str) -> NoReturn:
    print(f"fathom: {message}", file=sys.stderr)
    raise SystemExit(1)


def _wait(coroutine: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(coroutine)


def _is_row(text: str) -> bool:
    return text.lstrip().startswith("[")


def _value(text: str) -> Any:
    """A JSON list is a row or token ids; anything else is text."""
    try:
        return json.loads(text) if _is_row(text) else text
    except json.JSONDecodeError:
        return text


def progress_bar() -> "Progress":
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _told(result: dict[str, Any]) -> str:
    from models.chain import Chain

    lines = []
    for name in ("full", "best"):
        one = result[name]
        chain = Chain(tuple(one["chain"]))
        certified = "certified" if one["certified"] else "not certified"
        lines.append(f"{name:5} {one['text']!r} with {one['length']} layers ({chain}), {certified}")
    oracle = ", with the label known" if result["oracle"] else ""
    return "\n".join(
        [*lines, f"{result['stats']['simulations']} simulations{oracle}, {result['stats']['seconds']:.2f} s"]
    )
