"""Evaluators over a served model: leaves are scored in batches by the engine, winners really run alone."""

from collections.abc import Sequence

import numpy as np

from models.chain import Chain
from models.errors import InputError, LengthError
from service.cola.evaluator import Answer, Evaluation
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.engine.sampling import Sampling
from service.engine.tensor import TensorEngine


class LanguageEvaluator:
    """One prompt on a language model. Answers are generated greedily, their end token included in `token_ids`."""

    def __init__(self, engine: LanguageEngine, prompt: str | Sequence[int], max_new_tokens: int) -> None:
        self._engine, self._max_new_tokens = engine, max_new_tokens
        self._prompt = engine.encode(prompt)

    def target(self, text: str | Sequence[int]) -> Answer:
        """A target as the model would have to generate it. Raises LengthError if it could not."""
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
        judged = await self._engine.score([(self._prompt, expected.token_ids)] * len(chains), chains, is_search=True)
        # Decoding alone would take in the same tokens: the prompt, then every token of the answer but the last.
        return [
            Evaluation(one.matches, one.layer_evaluations, one.layer_evaluations, sum(one.logprobs)) for one in judged
        ]


class ClassEvaluator:
    """One input row on a classifier; the answer is the class with the largest output."""

    def __init__(self, engine: TensorEngine, row: object) -> None:
        self._engine, self._inputs = engine, row if isinstance(row, dict) else [row]

    def target(self, label: object) -> Answer:
        """A class index as an answer. Raises InputError if the model has no such class."""
        num_classes = self._engine.manifest.outputs[0].shape[-1]
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise InputError(f"target {label!r} is no class of this model; use an integer from 0 to {num_classes - 1}")
        return Answer(str(label), (label,))

    async def answer(self, chain: Chain) -> Answer:
        (logits,) = await self._engine.classify(self._inputs, (chain,), is_search=False)
        label = int(np.argmax(logits))
        return Answer(str(label), (label,), len(chain))

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        rows = await self._engine.classify(self._inputs, tuple(chains), is_search=True)
        matches = [int(np.argmax(logits)) == expected.token_ids[0] for logits in rows]
        return [Evaluation(match, len(chain), len(chain)) for match, chain in zip(matches, chains, strict=True)]


def evaluator_for(engine: Engine, sample: object, max_new_tokens: int) -> LanguageEvaluator | ClassEvaluator:
    """The evaluator of one sample. Raises InputError if the model has no chains or the sample is of the wrong kind."""
    if not engine.num_layers:
        raise InputError(f"model {engine.manifest.name!r} is served whole; there are no chains to search")
    if isinstance(engine, LanguageEngine):
        if not isinstance(sample, str | list):
            raise InputError(f"the input is a {type(sample).__name__}; send text or a list of token ids")
        return LanguageEvaluator(engine, sample, max_new_tokens)
    assert isinstance(engine, TensorEngine)
    return ClassEvaluator(engine, sample)
