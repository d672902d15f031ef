"""The command `fathom bench`: load on a server or on a model, beside what the machine could do; `fathom bench tp`."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from models.errors import InputError
from service import cli_tp
from service.bench.option import check_plot, numbers

if TYPE_CHECKING:
    from service.bench.run import Measurement, Plan, Report


class _Benches(TyperGroup):
    """What is not the name of a bench is what to put load on: `fathom bench arith` is `fathom bench load arith`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_named = not args or args[0] == "--help" or args[0] in self.commands
        return super().parse_args(ctx, args if is_named else ["load", *args])


app = typer.Typer(
    cls=_Benches,
    no_args_is_help=True,
    help="Load on a server or a model, as `fathom bench MODEL` does too; or residual forms on several ranks.",
)
app.command("tp")(cli_tp.tp)


@app.command("load")
def load(
    where: Annotated[str, typer.Argument(help="URL of a server, or name of a model to start a server for.")],
    model: Annotated[str | None, typer.Option(help="Model of the server, with a URL.")] = None,
    clients: Annotated[
        str | None, typer.Option(help="Closed loop: each client asks again when answered; such as 1,8,64.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop: requests due per second; such as 100,200.")] = None,
    arrivals: Annotated[str, typer.Option(help="Open loop: poisson or constant.")] = "poisson",
    seconds: Annotated[float, typer.Option(min=0.1, max=86400, help="Time to measure each load.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, max=3600, help="Seconds before, not counted.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, max=4096, help="Inputs of one request.")] = 1,
    chains: Annotated[str | None, typer.Option(help="Chains and weights, 'full:0.5;0-3,6-11:0.3'.")] = None,
    random_chains: Annotated[int, typer.Option(min=0, max=4096, help="Draw so many chains instead.")] = 0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Random token ids of a prompt.")] = 16,
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with a 'prompt' each, instead of ids.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 32,
    stream: Annotated[bool, typer.Option("--stream", help="Stream, and time each token.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same requests at the same times.")] = 0,
    repository: Annotated[
        str | None, typer.Option(help="Folder or URL of models; FATHOM_REPOSITORY, else ./repository.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw into; needs the extra 'study'.")] = None,
) -> None:
    """Measure latency, throughput and CPU, with the physical limit beside every number."""
    from service.bench.mix import ChainMix
    from service.bench.run import Plan
    from service.bench.target import Shape

    if arrivals not in ("poisson", "constant"):
        raise InputError(f"--arrivals is {arrivals!r}; write poisson or constant")
    if clients is not None and rate is not None:
        raise InputError("--clients and --rate came together; a loop is closed or open, leave one out")
    plan = Plan(
        clients=numbers(clients or "1", int, "--clients"),
        rates=numbers(rate, float, "--rate") if rate is not None else (),
        arrivals="constant" if arrivals == "constant" else "poisson",
        seconds=seconds,
        warmup_s=warmup,
        shape=Shape(rows, prompt_tokens, max_new_tokens, stream, _prompts(prompts) if prompts else ()),
        mix=ChainMix.parse(chains) if chains is not None else ChainMix(),
        num_random_chains=random_chains,
        seed=seed,
    )
    if plot is not None:
        check_plot(plot)
    _show(_run(where, model, plan, repository), f"{model or where}", json_file, plot)


def _run(where: str, model: str | None, plan: "Plan", repository: str | None) -> "list[Measurement]":
    import uvloop

    from service.bench.run import run
    from service.cli import progress_bar
    from service.settings import read_settings

    with progress_bar() as progress:
        task = progress.add_task("start", total=None)

        def report(what: str, passed: float, total: float) -> None:
            progress.update(task, description=what, completed=round(min(passed, total), 1), total=total)

        listen: Report = report
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(where, model, plan, read_settings(repository=repository), listen))


def _show(found: "list[Measurement]", title: str, json_file: Path | None, plot: Path | None) -> None:
    from rich.console import Console

    from service.bench.run import as_json
    from service.bench.table import table

    Console().print(table(found, title))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(found), indent=2) + "\n")
    if plot is not None:
        from service.bench.picture import draw

        draw(found, title, plot)


def _prompts(path: Path) -> tuple[str, ...]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        found = tuple(str(line["prompt"]) for line in lines)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a file of JSON lines with a 'prompt' each: {error!r}") from error
    if not found:
        raise InputError(f"{path} has no prompts; write at least one")
    return found
