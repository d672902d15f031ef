"""The card of a checkpoint: what was trained, how, how good it is beside its baseline, and which claims held.

As `card.json` for programs and as `README.md` for people. Measures nothing.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

CARD = "card.json"


class Record(BaseModel):
    """An immutable part of a card; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Trained(Record):
    """A trained network: its parameters and its score on what is held out, in per cent."""

    name: str
    parameters: int
    score: float


class Judged(Record):
    """What a paper says that training gives, and what it gave here."""

    text: str
    held: bool
    figures: str


class Card(Record):
    """What is known of one checkpoint. seconds: of training on one core, machines differ."""

    architecture: str
    row: str
    title: str
    paper: str
    seed: int
    steps: int
    data: str
    metric: str
    model: Trained
    baseline: Trained
    seconds: float
    claims: tuple[Judged, ...] = ()

    @property
    def name(self) -> str:
        return self.model.name

    def write(self, directory: Path) -> None:
        """Write `card.json` and `README.md`."""
        (directory / CARD).write_text(self.model_dump_json(indent=2) + "\n")
        (directory / "README.md").write_text(_text(self))


def read_card(directory: Path) -> Card:
    """The card beside a checkpoint."""
    return Card.model_validate_json((directory / CARD).read_text())


def read_cards(checkpoints: Path) -> list[Card]:
    """The cards of all checkpoints of a folder that have one, by row of the list of papers and by name."""
    cards = (read_card(path.parent) for path in checkpoints.glob(f"*/{CARD}"))
    return sorted(cards, key=lambda card: (card.row, card.name))


def _text(card: Card) -> str:
    held = "".join(
        f"| {claim.text} | {'held' if claim.held else 'not held'} | {claim.figures} |\n" for claim in card.claims
    )
    claims = f"\n| what training was to show | here | figures |\n|---|---|---|\n{held}" if held else ""
    return _CARD.format(card=card, claims=claims)


_CARD = """# {card.name}

{card.architecture} of {card.row}, "{card.title}" ({card.paper}), trained on little data to be exported, served and
taken apart. Licence: Apache-2.0.

| | |
|---|---|
| command | `fathom train {card.name} --seed {card.seed}` |
| steps | {card.steps:,} |
| time | {card.seconds:.0f} s on one CPU core shared with other work |

| {card.metric} | parameters | held out |
|---|---|---|
| {card.model.name} | {card.model.parameters:,} | {card.model.score:.1f} |
| {card.baseline.name} | {card.baseline.parameters:,} | {card.baseline.score:.1f} |
{claims}
Both were trained with the same steps, batches and rates; one seed each. Data: {card.data}.
"""
