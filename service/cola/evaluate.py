"""Evaluators over a served model: leaves share their prefixes in the engine, winners really run alone."""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from models.chain import Chain
from models.errors import ChainError, InputError, LengthError
from service.backends.protocol import Array
from service.cola.classify import ChoiceEvaluator, ClassEvaluator, LabelEvaluator, booked
from service.cola.evaluator import Answer, Evaluation
from service.engine.encoder import EncoderEngine
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.engine.prefix import PrefixCache
from service.engine.sampling import Choice, Sampling
from service.engine.shared import SharedSample, text_stages
from service.engine.tensor import TensorEngine


class LanguageEvaluator:
    """One prompt on a language model. Answers are generated greedily, their end token included in `token_ids`."""

    is_exact = True

    def __init__(
        self,
        engine: LanguageEngine,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        max_bytes: int,
        wants_influence: bool = False,
    ) -> None:
        self._engine, self._max_new_tokens = engine, max_new_tokens
        self._prompt = engine.encode(prompt)
        self._cache, self._wants_influence = PrefixCache(max_bytes), wants_influence
        self._expected: tuple[int, ...] = ()
        self._stages: Sequence[SharedSample] = ()

    @property
    def influence(self) -> Sequence[float]:
        return self._stages[0].influence if self._stages else ()

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
        sampling = Sampling(max_new_tokens=self._max_new_tokens, logprobs=2)
        (done,) = await self._engine.generate([self._prompt], chain.layers, sampling)
        return answer_of(done.text, done.choices, done.layer_evaluations)

    async def answers(self, chains: Sequence[Chain]) -> Sequence[Answer]:
        return await asyncio.gather(*(self._answer_if_finite(chain) for chain in chains))

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        """Read the expected answer in stages; a chain that would say another token is not run in the next."""
        target, left, judged, cost = expected.token_ids, list(chains), 0, 0
        for stage in self._stages_of(target):
            if not left:
                break
            answer = await self._engine.explore(stage, left)
            tokens = target[judged : judged + len(stage.tokens)]
            left = [chain for chain, said in zip(left, answer.outputs, strict=True) if _says(said["logits"], tokens)]
            judged, cost = judged + len(tokens), cost + answer.layer_evaluations
        num_tokens, right = len(self._prompt) + len(target) - 1, set(left)
        return [
            Evaluation(chain in right, cost, len(chain) * num_tokens)
            for chain, cost in zip(chains, booked(cost, len(chains)), strict=True)
        ]

    def _stages_of(self, target: tuple[int, ...]) -> Sequence[SharedSample]:
        """The samples of this prompt and target; another target starts over."""
        if self._expected != target:
            self._cache.clear()
            self._expected = target
            self._stages = text_stages(self._prompt, target, self._cache, self._wants_influence)
        return self._stages

    async def _answer_if_finite(self, chain: Chain) -> Answer:
        try:
            return await self.answer(chain)
        except ChainError:
            return Answer("", (), len(chain) * len(self._prompt))


def answer_of(text: str, choices: Sequence[Choice], layer_evaluations: int) -> Answer:
    """A generated answer, from tokens that were chosen with their two likeliest alternatives."""
    # A vocabulary of one token has no second.
    leads = [np.exp(choice.top[0][1]) - sum(np.exp(other) for _, other in choice.top[1:]) for choice in choices]
    confidence = float(np.exp(np.mean([choice.logprob for choice in choices])))
    token_ids = tuple(choice.token_id for choice in choices)
    return Answer(text, token_ids, layer_evaluations, confidence, float(np.mean(leads)))


def _says(logits: Array, tokens: tuple[int, ...]) -> bool:
    """Whether greedy decoding takes `tokens` [T], from the logits [T, V] before each."""
    return bool(np.isfinite(logits).all() and (logits.argmax(axis=-1) == np.asarray(tokens)).all())


AnyEvaluator: TypeAlias = LanguageEvaluator | ChoiceEvaluator | ClassEvaluator | LabelEvaluator


def evaluator_for(
    engine: Engine,
    sample: object,
    max_new_tokens: int,
    max_bytes: int,
    choices: Sequence[str] = (),
    wants_influence: bool = False,
) -> AnyEvaluator:
    """The evaluator of one sample; its prefixes hold at most `max_bytes`.

    Raises InputError if the model has no chains or the sample is of the wrong kind.
    """
    if not engine.num_layers:
        raise InputError(f"model {engine.manifest.name!r} is served whole; there are no chains to search")
    if isinstance(engine, LanguageEngine):
        if not isinstance(sample, str | list):
            raise InputError(f"the input is a {type(sample).__name__}; send text or a list of token ids")
        if choices:
            return ChoiceEvaluator(engine, sample, choices, max_bytes, wants_influence)
        return LanguageEvaluator(engine, sample, max_new_tokens, max_bytes, wants_influence)
    if choices:
        raise InputError("'choices' are for language models; the classes of this model are its choices")
    if isinstance(engine, EncoderEngine):
        if not isinstance(sample, str | list):
            raise InputError(f"the input is a {type(sample).__name__}; send a text, a pair of texts or token ids")
        return LabelEvaluator(engine, sample, max_bytes, wants_influence)
    assert isinstance(engine, TensorEngine)
    return ClassEvaluator(engine, sample, max_bytes, wants_influence)
