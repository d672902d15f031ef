"""The command `fathom train`: a recipe to a checkpoint with its card."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    name: Annotated[str, typer.Argument(help="Name of a recipe; docs/models.md lists them.")],
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoint directory to write; else ./NAME.")] = None,
) -> None:
    """Train a model of the catalogue and its baseline, judge what was claimed, write weights and card."""
    from training.make import make
    from training.recipes import find_recipe

    card = make(name, find_recipe(name), out or Path(name), seed)
    for trained in (card.model, card.baseline):
        typer.echo(f"{trained.score:5.1f}  {trained.name}, {trained.parameters:,} parameters")
    for claim in card.claims:
        typer.echo(f"{'held' if claim.held else 'NOT held'}: {claim.text}: {claim.figures}")
