"""The page of all models, `python -m training.page`: docs/models.md from the catalogue and the cards."""

from pathlib import Path

from models.catalogue import Claim, Entry, catalogue
from training.card import Card, read_cards

ROOT = Path(__file__).parents[1]
PAGE, CHECKPOINTS = ROOT / "docs" / "models.md", ROOT / "models" / "checkpoints"


def page() -> str:
    """The text of the page."""
    entries, cards = catalogue(), read_cards(CHECKPOINTS)
    sections = (_section(entry, [card for card in cards if card.architecture == entry.class_name]) for entry in entries)
    listed = "\n".join(_row(entry) for entry in sorted(entries, key=lambda entry: entry.about.row))
    return _PAGE.format(entries=listed, sections="\n".join(sections).rstrip())


def _row(entry: Entry) -> str:
    about = entry.about
    shapes = f"{_shape(entry.inputs[0].shape)} to {_shape(entry.outputs[0].shape)}"
    depth = f"{entry.num_layers} layers" if entry.is_stack else "whole"
    knobs = ", ".join(about.knobs) or "-"
    return f"| {about.row} | `{entry.name}` | {about.title}, {about.paper} | {shapes} | {depth} | {knobs} |"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if size == -1 else str(size) for size in shape) + "]"


def _section(entry: Entry, cards: list[Card]) -> str:
    lines = [f"## {entry.name}", "", f"{entry.about.row}, {entry.about.title}, {entry.about.paper}.", ""]
    if cards:
        lines += ["| checkpoint | parameters | metric | held out | baseline | its parameters | held out |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |", *map(_trained, cards), ""]
    rows = [*map(_proved, entry.about.claims), *(row for card in cards for row in _judged(card))]
    if rows:
        lines += ["| claim | test | here |", "| --- | --- | --- |", *rows, ""]
    data = sorted({card.data for card in cards})
    return "\n".join(lines + [f"Data: {one}.\n" for one in data])


def _trained(card: Card) -> str:
    model, baseline = card.model, card.baseline
    return (
        f"| `{card.name}` | {model.parameters:,} | {card.metric} | {model.score:.1f} "
        f"| {baseline.name} | {baseline.parameters:,} | {baseline.score:.1f} |"
    )


def _proved(claim: Claim) -> str:
    return f"| {claim.text} | `{claim.test}` | held |"


def _judged(card: Card) -> list[str]:
    test = f"tests/contracts/test_catalogue.py::test_claims_came_out_as_the_card_says[{card.name}]"
    return [
        f"| {claim.text} | `{test}` | {'held' if claim.held else '**not held**'}: {claim.figures} |"
        for claim in card.claims
    ]


_PAGE = """# The models

Architectures of papers, one file each in `models/`, trained on little data by recipes in `training/`. `fathom train
NAME` makes a checkpoint again, `fathom export NAME` makes it servable, `make serve` offers all of them. This page is
generated from the catalogue and the cards beside the weights (`python -m training.page`). A claim about equations is
held by the test that is named; a claim about what training gives is judged by the recipe, and reported as it came
out.

| row | name | paper | shapes | depth | knobs |
| --- | --- | --- | --- | --- | --- |
{entries}

{sections}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
