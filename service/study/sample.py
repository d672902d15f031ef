"""The study of one sample: searches for the right answer, for a wrong one and for the model's own, and controls."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from models.errors import InputError
from service.cola.evaluate import AnyEvaluator, evaluator_for
from service.cola.evaluator import Answer, Evaluator
from service.cola.presets import preset_named
from service.cola.reward import Reward, reward_named
from service.cola.search import find_chain
from service.cola.space import OPERATIONS, CoLaSpace, Space
from service.cola.task import Budget, Task
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.study.controls import log_probability, random_chains, sampling_cost
from service.study.dataset import Row
from service.study.decoy import ORDERED_FAMILY, decoy_of, log10_answers
from service.study.record import Sampled, SampleResult, Searched
from service.study.recorder import Recorder

# What a search may do to a chain; the paper's table has these three columns.
ALLOWED: dict[str, tuple[str, ...]] = {"both": OPERATIONS, "skip": ("skip",), "repeat": ("repeat",)}
_RANDOM_BATCH = 32


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """What every sample is put through. Simulations per search; temperatures of the sampling control.

    preset: of the search, one whose space has skips and repeats to choose from, else InputError.
    """

    preset: str = "default"
    simulations: int = 200
    max_new_tokens: int = 64
    temperatures: tuple[float, ...] = (1.0, 2.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if preset_named(self.preset).space != CoLaSpace.name:
            raise InputError(f"preset {self.preset!r} cannot search without skips, or without repeats; choose another")

    def constants(self, num_layers: int) -> dict[str, Any]:
        """Every constant of the search of a model of so many layers, by name."""
        preset = preset_named(self.preset)
        space = CoLaSpace.of(num_layers, **preset.space_knobs(num_layers))
        return {"space": asdict(space), "mcts": asdict(preset.mcts), "leaf_batch": preset.leaf_batch}


class SampleStudy:
    """One sample on one engine."""

    def __init__(self, engine: Engine, row: Row, config: StudyConfig) -> None:
        self._engine, self._row, self._config = engine, row, config
        self._preset = preset_named(config.preset)
        self._target = self._evaluator().target(row.target)

    async def run(self) -> SampleResult:
        """Search, with every control. The first search pays for what the others share with it."""
        started = time.perf_counter()
        truth, answer = await self._aimed_at(self._target)
        decoy = self._decoy(answer)
        lie, _ = await self._aimed_at(decoy)
        is_right = answer.agrees_with(self._target)
        agreement = truth["both"] if is_right else await self._agreement()
        once, each = sampling_cost(self._engine, self._row.sample, self._target)
        return SampleResult(
            line=self._row.line,
            family=self._row.family,
            level=self._row.level,
            target=self._target.text,
            decoy=decoy.text,
            answer=answer.text,
            is_right=is_right,
            num_layers=self._engine.num_layers,
            log10_answers=log10_answers(self._row.target, self._row.family == ORDERED_FAMILY, self._num_classes()),
            found={"target": truth, "decoy": lie, "agreement": {"both": agreement}},
            samples=await self._samples(decoy),
            sample_once=once,
            sample_each=each,
            seconds=round(time.perf_counter() - started, 3),
        )

    async def _aimed_at(self, expected: Answer) -> tuple[dict[str, Searched], Answer]:
        """Searches and random chains that want one answer, and the full chain's own."""
        evaluator, found = self._evaluator(), {}
        for allowed in ALLOWED:
            found[allowed], answer = await self._search(evaluator, allowed, reward_named("target"), expected)
        found["random"] = await self._random(evaluator, expected)
        return found, answer

    async def _agreement(self) -> Searched:
        found, _ = await self._search(self._evaluator(), "both", reward_named("agreement"), None)
        return found

    async def _search(
        self, evaluator: Evaluator, allowed: str, reward: Reward, target: Answer | None
    ) -> tuple[Searched, Answer]:
        recorder = Recorder(evaluator)
        task = Task(
            num_layers=self._engine.num_layers,
            space=self._space(allowed),
            reward=reward,
            target=target,
            mcts=self._preset.mcts,
            budget=Budget(simulations=self._config.simulations),
            seed=self._seed(allowed),
            leaf_batch=self._preset.leaf_batch,
        )
        result = await find_chain(task, recorder)
        best = result.best
        return recorder.searched(best.chain if best.certified else None, best.certified), result.full.answer

    async def _random(self, evaluator: Evaluator, expected: Answer) -> Searched:
        """The same random chains whatever is expected of them."""
        recorder, rng = Recorder(evaluator), Random(self._seed("random"))
        chains = random_chains(self._space("both"), self._engine.full, self._config.simulations, rng)
        for start in range(0, len(chains), _RANDOM_BATCH):
            await recorder.evaluate(chains[start : start + _RANDOM_BATCH], expected)
        return recorder.searched(recorder.shortest, certified=None)

    async def _samples(self, decoy: Answer) -> dict[str, Sampled]:
        temperatures = self._config.temperatures
        right, wrong = [
            await log_probability(self._engine, self._row.sample, answer, temperatures)
            for answer in (self._target, decoy)
        ]
        return {str(t): Sampled(target=a, decoy=b) for t, a, b in zip(temperatures, right, wrong, strict=True)}

    def _decoy(self, answer: Answer) -> Answer:
        wrong = decoy_of(self._row, self._num_classes(), answer.text, Random(self._seed("decoy")))
        return self._evaluator().target(wrong)

    def _evaluator(self) -> AnyEvaluator:
        """A new one for every expected answer: searches for the same answer share what they run."""
        limits = self._engine.limits
        return evaluator_for(self._engine, self._row.sample, self._config.max_new_tokens, limits.search_bytes)

    def _space(self, allowed: str) -> Space:
        num_layers = self._engine.num_layers
        return CoLaSpace.of(num_layers, **{**self._preset.space_knobs(num_layers), "operations": ALLOWED[allowed]})

    def _num_classes(self) -> int | None:
        return None if isinstance(self._engine, LanguageEngine) else self._engine.manifest.outputs[0].shape[-1]

    def _seed(self, purpose: str) -> int:
        """The same for the right answer and for the wrong one, so that the two are compared on equal luck."""
        identity = json.dumps([self._config.seed, self._row.sample, purpose])
        return int.from_bytes(hashlib.sha256(identity.encode()).digest())
