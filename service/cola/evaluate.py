"""Evaluators over a served model: leaves share their prefixes in the engine, winners really run alone."""

from collections.abc import Sequence

import numpy as np

from models.chain import Chain
from models.errors import InputError, LengthError
from service.cola.evaluator import Answer, Evaluation
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.engine.prefix import PrefixCache
from service.engine.sampling import Sampling, log_softmax
from service.engine.shared import SharedSample, text_sample
from service.engine.tensor import TensorEngine, read_inputs


class LanguageEvaluator:
    """One prompt on a language model. Answers are generated greedily, their end token included in `token_ids`."""

    def __init__(
        self, engine: LanguageEngine, prompt: str | Sequence[int], max_new_tokens: int, max_bytes: int
    ) -> None:
        self._engine, self._max_new_tokens = engine, max_new_tokens
        self._prompt = engine.encode(prompt)
        self._cache = PrefixCache(max_bytes)
        self._sample: tuple[tuple[int, ...], SharedSample] | None = None

    def target(self, text: object) -> Answer:
        """A target as the model would have to generate it. Raises InputError, or LengthError if it does not fit."""
        if not isinstance(text, str | list) or not all(isinstance(one, str | int) for one in text):
            raise InputError(f"target {text!r} is neither a text nor a list of token ids; send one of these")
        token_ids = self._engine.target(text)
        room = min(self._max_new_tokens, self._engine.language.max_length - len(self._prompt))
        if len(token_ids) > room:
            raise LengthError(f"the target has {len(token_ids)} tokens and at most {room} can follow; shorten it")
        return Answer(self._engine.tokenizer.decode(token_ids), token_ids)

    async def answer(self, chain: Chain) -> Answer:
        sampling = Sampling(max_new_tokens=self._max_new_tokens)
        (done,) = await self._engine.generate([self._prompt], chain.layers, sampling)
        return Answer(done.text, done.token_ids, done.layer_evaluations)

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        sample, target = self._shared(expected.token_ids), np.asarray(expected.token_ids)
        answer = await self._engine.explore(sample, chains)
        # What is shared is paid once; it is booked on the first chain of the batch.
        costs = [answer.layer_evaluations] + [0] * (len(chains) - 1)
        logits = [outputs["logits"] for outputs in answer.outputs]
        return [
            Evaluation(
                matches=bool(np.isfinite(one).all() and (one.argmax(axis=-1) == target).all()),
                layer_evaluations=cost,
                layer_evaluations_naive=len(chain) * sample.num_tokens,
                log_probability=float(log_softmax(one)[np.arange(len(target)), target].sum()),
            )
            for chain, one, cost in zip(chains, logits, costs, strict=True)
        ]

    def _shared(self, target: tuple[int, ...]) -> SharedSample:
        """The sample of this prompt and target; another target starts over."""
        if self._sample is None or self._sample[0] != target:
            self._cache.clear()
            self._sample = target, text_sample(self._prompt + target, len(target), self._cache)
        return self._sample[1]


class ClassEvaluator:
    """One input row on a classifier; the answer is the class with the largest output."""

    def __init__(self, engine: TensorEngine, row: object, max_bytes: int) -> None:
        self._engine, self._inputs = engine, row if isinstance(row, dict) else [row]
        self._output = engine.manifest.outputs[0]
        self._sample = SharedSample(read_inputs(self._inputs, engine.manifest.inputs), PrefixCache(max_bytes))

    def target(self, label: object) -> Answer:
        """A class index as an answer. Raises InputError if the model has no such class."""
        num_classes = self._output.shape[-1]
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise InputError(f"target {label!r} is no class of this model; use an integer from 0 to {num_classes - 1}")
        return Answer(str(label), (label,))

    async def answer(self, chain: Chain) -> Answer:
        (row,), _ = await self._engine.infer(self._inputs, chain.layers)
        label = int(np.argmax(row.outputs[self._output.name]))  # type: ignore[call-overload]
        return Answer(str(label), (label,), len(chain))

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        answer = await self._engine.explore(self._sample, chains)
        costs = [answer.layer_evaluations] + [0] * (len(chains) - 1)
        rows = [outputs[self._output.name] for outputs in answer.outputs]
        (label,) = expected.token_ids
        return [
            Evaluation(int(row.argmax()) == label, cost, len(chain), float(log_softmax(row)[label]))
            for row, cost, chain in zip(rows, costs, chains, strict=True)
        ]


def evaluator_for(
    engine: Engine, sample: object, max_new_tokens: int, max_bytes: int
) -> LanguageEvaluator | ClassEvaluator:
    """The evaluator of one sample; its prefixes hold at most `max_bytes`.

    Raises InputError if the model has no chains or the sample is of the wrong kind.
    """
    if not engine.num_layers:
        raise InputError(f"model {engine.manifest.name!r} is served whole; there are no chains to search")
    if isinstance(engine, LanguageEngine):
        if not isinstance(sample, str | list):
            raise InputError(f"the input is a {type(sample).__name__}; send text or a list of token ids")
        return LanguageEvaluator(engine, sample, max_new_tokens, max_bytes)
    assert isinstance(engine, TensorEngine)
    return ClassEvaluator(engine, sample, max_bytes)
