"""The commands `fathom drop`, `fathom soup` and `fathom low-rank`: checkpoints in, a checkpoint out."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Directory to write; `fathom export` and `fathom import` take it.")]
Model = Annotated[str, typer.Argument(help="Checkpoint directory, or the name of a shipped model.")]


def drop(
    model: Model,
    out: Out,
    count: Annotated[int | None, typer.Option(help="How many; those with the least influence on the samples.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which, such as 3,7-9, instead.")] = None,
    unit: Annotated[str, typer.Option(help="layer, or only its attention or its mlp.")] = "layer",
    samples: Annotated[
        Path | None, typer.Option(help="JSONL file of prompts or inputs; else the model's held-out one.")
    ] = None,
) -> None:
    """Write a checkpoint without some of its layers, or without the attention or the MLP of some."""
    from exporters.export import find_checkpoint
    from exporters.passes import drop as passes
    from exporters.samples import HELDOUT
    from models.chain import Chain
    from models.errors import InputError

    checkpoint = find_checkpoint(model)
    if unit not in ("layer", "attention", "mlp"):
        raise InputError(f"{unit!r} is no --unit; choose layer, attention or mlp")
    if (count is None) == (layers is None):
        raise InputError("name either --count or --layers")
    if layers is not None:
        dropped = list(Chain.parse(layers).layers)
    else:
        assert count is not None
        dropped = passes.choose(checkpoint, count, unit, samples or checkpoint / HELDOUT)  # type: ignore[arg-type]
    passes.drop(checkpoint, out, dropped, unit)  # type: ignore[arg-type]
    typer.echo(f"{out}: {checkpoint.name} without {unit} {Chain(tuple(dropped)).format()}")


def soup(
    models: Annotated[list[str], typer.Argument(help="Checkpoint directories of one shape.")],
    out: Out,
    samples: Annotated[
        Path | None, typer.Option(help="Keep only what does not lower the accuracy on this JSONL file.")
    ] = None,
) -> None:
    """Write the mean of several checkpoints: of all, or with --samples of those that help."""
    from exporters.export import find_checkpoint
    from exporters.passes.soup import greedy, uniform

    checkpoints = [find_checkpoint(model) for model in models]
    if samples is None:
        uniform(checkpoints, out)
        typer.echo(f"{out}: the mean of {len(checkpoints)}")
        return
    for checkpoint, found in greedy(checkpoints, out, samples):
        typer.echo(f"  with {checkpoint.name}: accuracy {found:.4f}")
    typer.echo(str(out))


def low_rank(
    model: Model,
    out: Out,
    keep: Annotated[float, typer.Option(help="Part of the weights of every projection, between 0 and 1.")] = 0.5,
) -> None:
    """Write a decoder whose projections are products of two thin matrices."""
    from exporters.export import find_checkpoint
    from exporters.passes import low_rank as passes

    passes.low_rank(find_checkpoint(model), out, keep)
    typer.echo(f"{out}: {keep:g} of the weights of every projection")
