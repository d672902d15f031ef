"""What a timing of residual forms is asked and what it answers. Knows no process and measures nothing."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from models.errors import InputError
from models.lm.config import LMConfig
from models.lm.residual import Residual, checked_for, parse_form
from models.parallel.latency import FORMS, Costs

Phase: TypeAlias = Literal["prefill", "decode"]
Device: TypeAlias = Literal["cpu", "cuda"]
_MAX_RANKS = 64


@dataclass(frozen=True, slots=True)
class Trial:
    """Forms of one model to time, with random weights: whatever a form was trained for, no answer is given.

    rows: sequences of a batch, each of `prompt_tokens`. repeats: passes of each kind, the best of which counts.
    latencies_s: what an all-reduce is made to take, one sweep each; None is the network as it is. module_s: what
    attention and MLP are made to take at least, asleep. has_p2p: with and without NCCL's direct way between GPUs.
    """

    config: LMConfig
    num_ranks: int = 2
    forms: tuple[str, ...] = tuple(FORMS)
    phases: tuple[Phase, ...] = ("prefill", "decode")
    rows: tuple[int, ...] = (1,)
    prompt_tokens: int = 128
    repeats: int = 5
    device: Device = "cpu"
    latencies_s: tuple[float | None, ...] = (None,)
    module_s: tuple[float, float] | None = None
    has_p2p: tuple[bool, ...] = (True,)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_ranks <= _MAX_RANKS:
            raise InputError(f"{self.num_ranks} ranks; from 1 to {_MAX_RANKS} can be timed")
        if not self.forms:
            raise InputError(f"no form is named to be timed; name some of {', '.join(FORMS)}")
        for name in self.forms:
            self.residual(name)
        for name, values in (
            ("rows", self.rows),
            ("prompt tokens", (self.prompt_tokens,)),
            ("repeats", (self.repeats,)),
        ):
            if min(values, default=0) < 1:
                raise InputError(f"{name} are {values}; whole numbers from 1 on make sense")
        if self.device == "cuda" and (self.module_s or any(one is not None for one in self.latencies_s)):
            raise InputError("times are made up for ranks on CPUs alone; on GPUs leave them out")
        times = [one for one in (*self.latencies_s, *(self.module_s or ())) if one is not None]
        if any(not 0 <= one <= 10 for one in times):
            raise InputError(f"times of {[1000 * one for one in times]} ms; 0 to 10000 make sense")
        if self.prompt_tokens >= self.config.max_length:
            raise InputError(
                f"{self.prompt_tokens} prompt tokens and one more do not fit into the model's {self.config.max_length}"
            )

    def residual(self, name: str) -> Residual:
        """The form of that name: one of FORMS, or a ladder's such as ladder:6-11. Raises FathomError."""
        if name in FORMS:
            return replace(FORMS[name], num_ranks=self.num_ranks, is_trained=False)
        found = checked_for(parse_form(name), self.config.num_hidden_layers)
        if found.form != "ladder":
            raise InputError(f"form {name!r} cannot be timed; name some of {', '.join(FORMS)}, or a hybrid ladder:6-11")
        return replace(found, is_trained=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """One form under one load. Times of a pass: the best of the repeats, their median, and what the model says.

    costs: what was measured of the parts, of which the prediction is made. num_all_reduces, num_bytes: of one rank,
    those of the embedding included. exposed_s: what rank 0 stood still for them in the best pass; None on a GPU.
    has_p2p: None where there is no such way.
    """

    form: str
    phase: Phase
    rows: int
    tokens: int
    latency_s: float | None
    has_p2p: bool | None
    best_s: float
    median_s: float
    predicted_s: float
    costs: Costs
    num_all_reduces: int
    num_bytes: int
    exposed_s: float | None

    @property
    def error(self) -> float:
        """How much longer than predicted, as a part of it."""
        return self.best_s / self.predicted_s - 1
