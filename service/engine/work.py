"""Units of work in the queue, and what each turns into. Plain records; they run nothing."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from models.chain import Chain
from models.errors import DeadlineError
from service.backends.protocol import Array, State
from service.engine.sampling import Choice, Sampling
from service.engine.tables import Table
from service.engine.terms import Terms, current_terms

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a sample waited, and seconds from leaving the queue to its answer; of one from memory there are none."""

    queue_s: float
    compute_s: float
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class Tensors:
    """Outputs of tensor rows: arrays with B rows each."""

    outputs: dict[str, Array]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Score:
    """One sequence read along one chain: for each target token its log-probability, and the token greedy would take."""

    logprobs: tuple[float, ...]
    greedy: tuple[int, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Embedded:
    """One sequence read along one chain: the mean of its residual stream, of length 1, [D] float32."""

    vector: Array
    timing: Timing


@dataclass(frozen=True, slots=True)
class Generated:
    """One continued prompt.

    num_passes: how often its chain was walked; num_evaluated: tokens that walked it; num_cached: prompt tokens that did
    not because their pages were found; num_preemptions: how often it made room and was read again.
    """

    choices: tuple[Choice, ...]
    finish_reason: FinishReason
    num_passes: int
    num_evaluated: int
    num_cached: int
    num_preemptions: int
    first_token_s: float
    timing: Timing

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(choice.token_id for choice in self.choices)


@dataclass(eq=False, slots=True, kw_only=True)
class Work:
    """One entry of the queue. `future` belongs to the event loop; the device thread only looks whether it is done."""

    future: asyncio.Future[object]
    submitted_at: float = field(default_factory=time.perf_counter)
    started_at: float = 0.0
    terms: Terms = field(default_factory=current_terms)

    @property
    def num_rows(self) -> int:
        return 1

    @property
    def num_tokens(self) -> int:
        """Tokens (rows, where there are no tokens) the first pass takes in."""
        return self.num_rows

    def too_late(self) -> DeadlineError:
        """The error of work whose deadline has passed."""
        timeout_s = self.terms.timeout_s
        return DeadlineError(f"the request took more than its {timeout_s:g} s; allow more time, or send less at a time")

    def timing(self) -> Timing:
        """Timing of work that has just been answered."""
        return Timing(self.started_at - self.submitted_at, time.perf_counter() - self.started_at)


@dataclass(eq=False, slots=True, kw_only=True)
class TensorWork(Work):
    """Rows of a tensor model, each along its own chain."""

    inputs: dict[str, Array]
    chains: tuple[Chain, ...]

    @property
    def num_rows(self) -> int:
        return len(self.chains)


@dataclass(eq=False, slots=True, kw_only=True)
class ScoreWork(Work):
    """One sequence, teacher-forced: the last `num_targets` tokens are judged by what comes before each."""

    token_ids: tuple[int, ...]
    num_targets: int
    chain: Chain

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(eq=False, slots=True, kw_only=True)
class EmbedWork(Work):
    """One sequence to be embedded."""

    token_ids: tuple[int, ...]
    chain: Chain

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(eq=False, slots=True, kw_only=True)
class EncodeWork(Work):
    """One text, or pair, to be read by an encoder; answered by Tensors of one row.

    places: the tokens whose outputs are wanted, of a model with outputs for each; is_per_token: all of them.
    """

    token_ids: tuple[int, ...]
    token_types: tuple[int, ...] | None
    places: tuple[int, ...] | None
    is_per_token: bool
    chain: Chain

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(eq=False, slots=True, kw_only=True)
class SequenceWork(Work):
    """Steps [T, ...] to be read by a recurrent model, answered by Tensors with an output for each, [T, ...].

    states: what each visit of the chain was left in; the list is this work's own. keeps: whether they are wanted after.
    """

    steps: Array
    chain: Chain
    max_chunk: int
    states: list[State]
    keeps: bool = False
    num_read: int = 0
    num_passes: int = 0
    outputs: list[dict[str, Array]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.steps)

    @property
    def num_left(self) -> int:
        """Steps to be read."""
        return len(self.steps) - self.num_read

    @property
    def num_next(self) -> int:
        """Steps of the next pass."""
        return min(self.num_left, self.max_chunk)

    def read(self, outputs: dict[str, Array], states: list[State]) -> Tensors | None:
        """Note one pass and what came of it; the answer, if that was the last."""
        self.num_read += self.num_next
        self.num_passes += 1
        self.states = states
        self.outputs.append(outputs)
        if self.num_left:
            return None
        joined = {name: np.concatenate([one[name] for one in self.outputs]) for name in outputs}
        return Tensors(joined, self.timing())


@dataclass(eq=False, slots=True, kw_only=True)
class GenerateWork(Work):
    """One prompt to continue, with what has been generated so far."""

    prompt: tuple[int, ...]
    chain: Chain
    sampling: Sampling
    eos_token_ids: tuple[int, ...]
    max_tokens: int  # prompt and answer together
    text_of: Callable[[tuple[int, ...]], str]
    on_choice: Callable[[Choice], None] | None = None
    choices: list[Choice] = field(default_factory=list)
    table: Table | None = None
    place: int = 0  # in the order of admission
    num_read: int = 0
    num_overtaken: int = 0
    num_passes: int = 0
    num_evaluated: int = 0
    num_cached: int = 0
    num_preemptions: int = 0
    first_token_at: float = 0.0
    tokens: list[int] = field(init=False)  # prompt and answer
    generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.generator = np.random.Generator(np.random.Philox(self.sampling.seed))

    @property
    def num_tokens(self) -> int:
        return len(self.prompt)

    @property
    def num_left(self) -> int:
        """Tokens to be read before the next one is known."""
        return len(self.tokens) - self.num_read

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is left to be read."""
        return bool(self.choices) and self.num_left == 1

    @property
    def max_read(self) -> int:
        """Tokens whose keys and values it may come to keep: the last one is not read."""
        return max(min(len(self.prompt) + self.sampling.max_new_tokens, self.max_tokens) - 1, len(self.prompt))

    def read(self, count: int) -> None:
        """Note one pass over the next `count` tokens."""
        self.num_read += count
        self.num_passes += 1
        self.num_evaluated += count

    def add(self, choice: Choice) -> FinishReason | None:
        """Take the next token; says why the sequence ends, or None if it goes on."""
        self.first_token_at = self.first_token_at or time.perf_counter()
        self.choices.append(choice)
        self.tokens.append(choice.token_id)
        if self.on_choice:
            self.on_choice(choice)
        if choice.token_id in self.eos_token_ids or self._stops():
            return "stop"
        is_full = len(self.prompt) + len(self.choices) >= self.max_tokens
        return "length" if is_full or len(self.choices) >= self.sampling.max_new_tokens else None

    def answer(self, finish_reason: FinishReason) -> Generated:
        """The finished sequence."""
        waited = self.first_token_at - self.submitted_at
        return Generated(
            choices=tuple(self.choices),
            finish_reason=finish_reason,
            num_passes=self.num_passes,
            num_evaluated=self.num_evaluated,
            num_cached=self.num_cached,
            num_preemptions=self.num_preemptions,
            first_token_s=waited,
            timing=self.timing(),
        )

    def _stops(self) -> bool:
        if not self.sampling.stop:
            return False
        text = self.text_of(tuple(choice.token_id for choice in self.choices))
        return any(stop in text for stop in self.sampling.stop)
