"""What a study writes down about one sample: one JSON line. Records only; they compute nothing but look-ups."""

from pydantic import BaseModel, ConfigDict

# Where hits are counted along a search, in simulations; the curve of a report.
CHECKPOINTS = (25, 50, 100, 200, 400, 800)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Searched(_Record):
    """Chains of one sample tried for one expected answer.

    hits: chains that gave it. shortest: (simulation, length) of the first hit and of every shorter one after it.
    chain: the winner's text form, None without a hit; certified: run alone it gave the answer (None: it was not run).
    layer_evaluations: really made, those that earlier searches of the sample had made are free; naive: without any
    sharing. spent: layer evaluations really made up to each checkpoint, and at the end.
    """

    simulations: int
    hits: int
    shortest: tuple[tuple[int, int], ...]
    chain: str | None
    certified: bool | None
    layer_evaluations: int
    layer_evaluations_naive: int
    spent: dict[int, int]

    def length_within(self, simulations: float) -> int | None:
        """Visits of the shortest chain found with this many simulations; None if there is none."""
        lengths = [length for simulation, length in self.shortest if simulation <= simulations]
        return lengths[-1] if lengths else None


class Sampled(_Record):
    """Natural log-probabilities of the two answers when the full chain's are drawn at a temperature."""

    target: float
    decoy: float


class SampleResult(_Record):
    """One sample: what the full chain says, every search, and every control.

    line: of the dataset. log10_answers: answer-space size. found: by aim (target, decoy, agreement), then by what was
    allowed (both, skip, repeat) or random chains. samples: by temperature; drawing n of them costs
    `sample_once + n * sample_each` layer evaluations.
    """

    line: int
    family: str
    level: int
    target: str
    decoy: str
    answer: str
    is_right: bool
    num_layers: int
    log10_answers: float | None
    found: dict[str, dict[str, Searched]]
    samples: dict[str, Sampled]
    sample_once: int
    sample_each: int
    seconds: float
