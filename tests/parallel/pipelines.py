"""Pipelines for tests: programs are done by all ranks of all stages, and compared as a leader does."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.artifact import LayersSpec, Manifest, TensorSpec
from models.lm.config import LMConfig
from models.parallel.crossing import Crossing, divide
from models.parallel.group import Group, ProcessGroup
from models.parallel.stages import Stages
from service.backends.protocol import Array
from service.backends.remote import RemoteBackend
from service.backends.staged import StagedBackend
from service.parallel.execute import Interpreter, Outcome
from service.parallel.messages import Facts
from service.parallel.probing import find_facts
from service.parallel.program import input_names
from tests.parallel.ranks import TIMEOUT_S
from tests.parallel.served import language, staged
from tests.parallel.threads import ThreadCrossing, on_stages
from tests.service.parallel.loopback import Epoch


@dataclass
class Rank:
    """One rank: its backend, and what does programs on it."""

    backend: StagedBackend
    interpreter: Interpreter
    facts: Facts

    def do(self, body: bytes) -> "Answer":
        return Answer(self.interpreter.run(body), self.interpreter.num_carries)


@dataclass
class Answer:
    """What a rank says of a program."""

    outcome: Outcome
    num_carries: int


@dataclass
class Pipeline:
    """What a supervisor is to a remote backend. ask: has every rank do a program; speaker: whose outputs count."""

    ask: Callable[[bytes], Sequence[Answer]]
    speaker: int
    epoch: int = 1
    is_up: bool = True
    probe: Any = None
    ranks: Epoch = field(default_factory=lambda: Epoch(1))

    def run(self, epoch: int, body: bytes) -> dict[str, Array]:
        first, *others = answers = self.ask(body)
        for answer in answers:
            assert answer.outcome.error is None, answer.outcome.error
        for answer in others:
            assert (answer.outcome.trace, answer.num_carries) == (first.outcome.trace, first.num_carries)
        return answers[self.speaker].outcome.outputs


def opened(
    group: Group, crossing: Crossing, directory: Path, stages: Stages, num_pages: int, dtype: torch.dtype
) -> Rank:
    """A rank of a checkpoint's pipeline."""
    backend = staged(group, crossing, directory, stages, num_pages, dtype)
    manifest = manifest_of(backend.station.config)
    return Rank(backend, Interpreter(backend, input_names(manifest), lambda: 0), find_facts(manifest, backend))


def led(
    config: LMConfig, stages: Stages, size: int, facts: Sequence[Facts], ask: Callable[[bytes], Sequence[Answer]]
) -> RemoteBackend:
    """The backend that a server has, over ranks that do what they are asked."""
    assert all(one == facts[0] for one in facts)
    supervisor: Any = Pipeline(ask, stages.head(config.is_tied) * size)
    return RemoteBackend(manifest_of(config), supervisor, facts[0], lambda: None, stages)


# Of a process that is a rank of tests.
_HERE: list[Rank] = []


def open_here(group: ProcessGroup, directory: Path, stages: Stages, num_pages: int, dtype: torch.dtype) -> Facts:
    """Have this process be a rank of a pipeline from now on."""
    own, crossing = divide(group, stages.count, TIMEOUT_S)
    _HERE[:] = [opened(own, crossing, directory, stages, num_pages, dtype)]
    return _HERE[0].facts


def answer_here(group: ProcessGroup, body: bytes) -> Answer:
    """Have this process do a program."""
    return _HERE[0].do(body)


@contextmanager
def threads(
    directory: Path, stages: Stages, size: int, num_pages: int = 0, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[RemoteBackend, list[ThreadCrossing]]]:
    """A pipeline of a checkpoint in this process, and its ranks' ways to each other, which note what is sent."""
    places = on_stages(stages.count, size)
    with ThreadPoolExecutor(len(places)) as pool:
        ranks = list(pool.map(lambda place: opened(*place, directory, stages, num_pages, dtype), places))

        def ask(body: bytes) -> list[Answer]:
            return list(pool.map(lambda rank: rank.do(body), ranks))

        config = ranks[0].backend.station.config
        yield led(config, stages, size, [rank.facts for rank in ranks], ask), [crossing for _, crossing in places]


def manifest_of(config: LMConfig) -> Manifest:
    count = config.num_hidden_layers
    return Manifest(
        name="words",
        version="1",
        kind="causal-lm",
        inputs=(TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, config.vocab_size)),),
        layers=LayersSpec(count=count, residual_form="standard", cost=(1,) * count),
        language=language(config),
        forms={},
        files={},
    )
