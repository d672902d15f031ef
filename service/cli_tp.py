"""The command `fathom bench tp`: what each residual form takes on several ranks of this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import InputError
from service.bench.option import check_plot, numbers

if TYPE_CHECKING:
    from models.lm.config import LMConfig
    from models.parallel.trial import Measured, Phase, Trial

_VOCABULARY = 32000


def tp(
    where: Annotated[
        Path | None, typer.Argument(help="Directory with a decoder's config.json; without it, a Llama of the sizes.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(help="Processes; every GPU, or else 2.")] = None,
    hidden: Annotated[int, typer.Option(min=8, help="Width of the stream.")] = 1024,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers; the config's, or else 12.")] = None,
    heads: Annotated[int, typer.Option(min=1, help="Heads of attention.")] = 16,
    forms: Annotated[
        str | None, typer.Option(help="Such as standard,ladder,ladder:6-11; all of one kind without it.")
    ] = None,
    phases: Annotated[str, typer.Option(help="prefill, decode or both.")] = "prefill,decode",
    rows: Annotated[str, typer.Option(help="Batch sizes, such as 1,4,16.")] = "1",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt, cached for decode.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each kind; the best counts.")] = 5,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one.")] = None,
    p2p: Annotated[str, typer.Option(help="NCCL's direct way between GPUs: on, off or both.")] = "both",
    latency_ms: Annotated[
        str | None, typer.Option(help="What an all-reduce is made to take, one sweep each: 0.5,2,8.")
    ] = None,
    module_ms: Annotated[
        str | None, typer.Option(help="What a module takes at least, asleep: 8, or attention's and the MLP's 2,4.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and tokens.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw into; needs the extra 'study'.")] = None,
) -> None:
    """Time residual forms over tensor parallel ranks, random weights, predicted beside measured; no answer is given."""
    from models.parallel.latency import FORMS
    from models.parallel.timing import devices
    from models.parallel.trial import Trial

    if plot is not None:
        check_plot(plot)
    kind, count = devices(device)
    trial = Trial(
        config=_config(where, hidden, layers, heads, prompt_tokens),
        num_ranks=ranks or count,
        forms=tuple(forms.split(",")) if forms else tuple(FORMS),
        phases=_phases(phases),
        rows=numbers(rows, int, "--rows"),
        prompt_tokens=prompt_tokens,
        repeats=repeats,
        device=kind,
        latencies_s=_seconds(latency_ms) if latency_ms else (None,),
        module_s=_module_s(module_ms),
        has_p2p=_p2p(p2p),
        seed=seed,
    )
    _show(_run(trial), trial, json_file, plot)


def _config(where: Path | None, hidden: int, layers: int | None, heads: int, prompt_tokens: int) -> "LMConfig":
    """The config of a directory, or a Llama's of these sizes. Raises InputError or ArtifactError."""
    from dataclasses import replace

    from models.checkpoint import read_raw
    from models.lm.architectures import ARCHITECTURES, read_config
    from models.lm.config import LMConfig
    from models.lm.residual import Residual

    if where is None:
        if hidden % heads or hidden // heads % 2:
            raise InputError(f"--hidden {hidden} over --heads {heads} is no even size of a head; choose others")
        return LMConfig(_VOCABULARY, hidden, 7 * hidden // 2, layers or 12, heads, heads, prompt_tokens + 1)
    raw = read_raw(where)
    if raw.get("model_type") not in ARCHITECTURES:
        raise InputError(f"{where} is a {raw.get('model_type')!r}; decoders can be timed: {', '.join(ARCHITECTURES)}")
    config = read_config(raw, str(raw["model_type"]))
    return replace(config, residual=Residual(), num_hidden_layers=layers or config.num_hidden_layers)


def _phases(text: str) -> "tuple[Phase, ...]":
    chosen = tuple(name for name in ("prefill", "decode") if name in text.split(","))
    if set(text.split(",")) != set(chosen):
        raise InputError(f"--phases is {text!r}; write prefill, decode or prefill,decode")
    return chosen


def _p2p(text: str) -> tuple[bool, ...]:
    found = {"on": (True,), "off": (False,), "both": (True, False)}.get(text)
    if found is None:
        raise InputError(f"--p2p is {text!r}; write on, off or both")
    return found


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(one / 1000 for one in numbers(text, float, "--latency-ms"))


def _module_s(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    attention, *mlp = (one / 1000 for one in numbers(text, float, "--module-ms"))
    if len(mlp) > 1:
        raise InputError(f"--module-ms is {text!r}; write one time, or attention's and the MLP's")
    return attention, mlp[0] if mlp else attention


def _run(trial: "Trial") -> "list[Measured]":
    from models.parallel.timing import measure
    from service.cli import progress_bar

    found = []
    loads = len(trial.latencies_s) * len(trial.phases) * len(trial.rows)
    total = loads * len(trial.forms) * (len(trial.has_p2p) if trial.device == "cuda" else 1)
    with progress_bar() as progress:
        task = progress.add_task("start ranks", total=total)
        for one in measure(trial):
            found.append(one)
            progress.update(task, description=f"{one.phase}, {one.rows} rows", completed=len(found))
    return found


def _show(found: "list[Measured]", trial: "Trial", json_file: Path | None, plot: Path | None) -> None:
    from rich.console import Console

    from service.bench.forms import as_json, tables, title

    Console().print(tables(found, trial))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(found, trial), indent=2) + "\n")
    if plot is not None:
        from service.bench.gains import draw

        draw(found, title(trial), plot)
