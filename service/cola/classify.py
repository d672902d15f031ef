"""Evaluators of samples with a closed list of answers: the classes of a classifier, the choices of a question."""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.chain import Chain
from models.errors import InputError
from service.backends.protocol import Array
from service.cola.evaluator import Answer, Evaluation
from service.engine.encoder import EncoderEngine, TextInput
from service.engine.language import LanguageEngine
from service.engine.prefix import PrefixCache
from service.engine.sampling import log_softmax
from service.engine.sequence import SequenceEngine
from service.engine.shared import SharedSample, text_sample
from service.engine.tensor import TensorEngine, read_inputs


class _Closed:
    """What both kinds share: from scores [C] of the C answers to evaluations and answers."""

    is_exact = True
    names: Sequence[str]

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        scores, costs, num_tokens = await self._explore(chains)
        (label,) = expected.token_ids
        return [
            _evaluation(one, label, cost, len(chain) * num_tokens)
            for one, cost, chain in zip(scores, costs, chains, strict=True)
        ]

    async def answers(self, chains: Sequence[Chain]) -> Sequence[Answer]:
        scores, costs, _ = await self._explore(chains)
        return [self._answer(one, cost) for one, cost in zip(scores, costs, strict=True)]

    async def _explore(self, chains: Sequence[Chain]) -> tuple[Sequence[Array], Sequence[int], int]:
        """Scores [C] along each chain, what each cost, and the tokens that a visit takes in."""
        raise NotImplementedError

    def _answer(self, scores: Array, cost: int) -> Answer:
        if not np.isfinite(scores).all():
            return Answer("", (), cost)
        label = int(scores.argmax())
        confidence = float(np.exp(log_softmax(scores)[label]))
        return Answer(self.names[label], (label,), cost, confidence, _lead(scores, label))


class ClassEvaluator(_Closed):
    """One row on a classifier; the answer is the class with the largest output, of a sequence at its last step."""

    def __init__(self, engine: TensorEngine, row: object, max_bytes: int, wants_influence: bool = False) -> None:
        self._engine, self._inputs = engine, row if isinstance(row, dict) else [row]
        self._output = engine.manifest.outputs[0]
        self.names = [str(label) for label in range(abs(self._output.shape[-1]))]
        inputs = read_inputs(self._inputs, engine.manifest.inputs)
        count = len(next(iter(inputs.values())))
        if count != 1:
            raise InputError(f"the input has {count} rows; a search takes 1; send the others in 'inputs'")
        self._sample = row_sample(engine, inputs, PrefixCache(max_bytes), wants_influence)

    @property
    def influence(self) -> Sequence[float]:
        return self._sample.influence

    def target(self, label: object) -> Answer:
        """A class index as an answer. Raises InputError if the model has no such class."""
        num_classes = self._output.shape[-1]
        if type(label) is not int or not 0 <= label < num_classes:
            raise InputError(f"target {label!r} is no class of this model; use an integer from 0 to {num_classes - 1}")
        return Answer(str(label), (label,))

    async def answer(self, chain: Chain) -> Answer:
        done = await self._engine.infer(self._inputs, chain.layers)
        scores = self._last(done.outputs[self._output.name][0])
        return self._answer(scores.astype(np.float32), len(chain) * self._sample.num_tokens)

    async def _explore(self, chains: Sequence[Chain]) -> tuple[Sequence[Array], Sequence[int], int]:
        answer = await self._engine.explore(self._sample, chains)
        scores = [self._last(one[self._output.name]) for one in answer.outputs]
        return scores, booked(answer.layer_evaluations, len(chains)), self._sample.num_tokens

    def _last(self, outputs: Array) -> Array:
        """Outputs [C] of a row, or at the last of its steps [T, C]."""
        last: Array = outputs[-1] if isinstance(self._engine, SequenceEngine) else outputs
        return last


def row_sample(
    engine: TensorEngine, inputs: dict[str, Array], cache: PrefixCache, wants_influence: bool = False
) -> SharedSample:
    """One row, or one sequence, for searches on which many chains run. Raises InputError."""
    length = len(engine.sequences(inputs)[0]) if isinstance(engine, SequenceEngine) else 0
    return SharedSample(inputs, cache, length, wants_influence=wants_influence)


class LabelEvaluator(_Closed):
    """One text on a classifier of texts; the answer is the label with the largest output.

    Raises InputError for an encoder that does not choose one of several labels.
    """

    def __init__(self, engine: EncoderEngine, text: TextInput, max_bytes: int, wants_influence: bool = False) -> None:
        encoder = engine.encoder
        if encoder.task != "classify" or encoder.scores != "softmax" or len(encoder.labels) < 2:
            raise InputError(
                f"model {engine.manifest.name!r} does not choose one of several labels, so no chain of it is right or "
                "wrong; search a classifier"
            )
        self._engine, self._tokens, self.names = engine, engine.tokens(text), encoder.labels
        self._sample = engine.sample(self._tokens, PrefixCache(max_bytes), wants_influence)

    @property
    def influence(self) -> Sequence[float]:
        return self._sample.influence

    def target(self, label: object) -> Answer:
        """A label, or its number, as an answer. Raises InputError if the model has no such label."""
        names = list(self.names)
        number = names.index(label) if isinstance(label, str) and label in names else label
        if type(number) is not int or not 0 <= number < len(names):
            raise InputError(f"target {label!r} is no label of this model; use one of {names!r:.200}, or its number")
        return Answer(names[number], (number,))

    async def answer(self, chain: Chain) -> Answer:
        scores = await self._engine.outputs(self._tokens, chain)
        return self._answer(scores, len(chain) * self._sample.num_tokens)

    async def _explore(self, chains: Sequence[Chain]) -> tuple[Sequence[Array], Sequence[int], int]:
        answer = await self._engine.explore(self._sample, chains)
        scores = [next(iter(one.values())) for one in answer.outputs]
        return scores, booked(answer.layer_evaluations, len(chains)), self._sample.num_tokens


class ChoiceEvaluator(_Closed):
    """One question on a language model; the answer is the choice with the largest log-likelihood after the prompt.

    Where every choice is one token, the prompt is read once and only their rows of the head's outputs are compared:
    nothing is decoded. Longer choices are each read behind the prompt.
    """

    def __init__(
        self,
        engine: LanguageEngine,
        prompt: str | Sequence[int],
        choices: Sequence[str],
        max_bytes: int,
        wants_influence: bool = False,
    ) -> None:
        self._engine, self.names = engine, choices
        self._choices = [engine.tokenizer.encode(choice) for choice in choices]
        if len(choices) < 2 or len({*self._choices}) < len(choices) or not all(self._choices):
            raise InputError(f"choices {list(choices)!r:.200} are not two or more different texts; send these")
        self._prompt = engine.encode(prompt, room=max(map(len, self._choices)))
        self._are_letters = max(map(len, self._choices)) == 1
        read = self._choices[:1] if self._are_letters else self._choices
        self._samples = [
            text_sample(self._prompt + one, len(one), PrefixCache(max_bytes // len(read)), wants_influence)
            for one in read
        ]

    @property
    def influence(self) -> Sequence[float]:
        return self._samples[0].influence

    def target(self, choice: object) -> Answer:
        """One of the choices as an answer. Raises InputError for another."""
        if choice not in self.names:
            raise InputError(f"target {choice!r} is none of the choices; use one of {list(self.names)!r:.200}")
        place = list(self.names).index(str(choice))
        return Answer(self.names[place], (place,))

    async def answer(self, chain: Chain) -> Answer:
        pairs = [(self._prompt, choice) for choice in self._choices]
        judged = await self._engine.score(pairs, [chain] * len(pairs))
        scores = np.asarray([sum(one.logprobs) for one in judged])
        return self._answer(scores, sum(one.layer_evaluations for one in judged))

    async def _explore(self, chains: Sequence[Chain]) -> tuple[Sequence[Array], Sequence[int], int]:
        explored = await asyncio.gather(*(self._engine.explore(sample, chains) for sample in self._samples))
        costs = booked(sum(one.layer_evaluations for one in explored), len(chains))
        # For each chain the logits [T, V] behind each prompt that was read.
        logits = zip(*([outputs["logits"] for outputs in one.outputs] for one in explored), strict=True)
        return [self._scores(each) for each in logits], costs, sum(sample.num_tokens for sample in self._samples)

    def _scores(self, logits: Sequence[Array]) -> NDArray[np.float64]:
        """The log-likelihood of each choice [C], less what is the same for all."""
        if not all(np.isfinite(one).all() for one in logits):
            return np.full(len(self._choices), -np.inf)
        if self._are_letters:
            return logits[0][0, [letter for (letter,) in self._choices]].astype(np.float64)
        pairs = zip(logits, self._choices, strict=True)
        return np.asarray([log_softmax(one)[np.arange(len(choice)), choice].sum() for one, choice in pairs])


def booked(layer_evaluations: int, num_chains: int) -> list[int]:
    """What a batch shares is paid once: on its first chain."""
    return [layer_evaluations] + [0] * (num_chains - 1)


def _evaluation(scores: Array, label: int, cost: int, naive: int) -> Evaluation:
    if not np.isfinite(scores).all():
        return Evaluation(False, cost, naive, lead=-1.0)
    return Evaluation(int(scores.argmax()) == label, cost, naive, _lead(scores, label))


def _lead(scores: Array, label: int) -> float:
    """Probability of `label` less that of the likeliest other, -1..1; 1 where there is no other."""
    probabilities = np.exp(log_softmax(scores))
    return float(probabilities[label] - np.delete(probabilities, label).max(initial=0.0))
