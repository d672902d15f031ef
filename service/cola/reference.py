"""The evaluator of searches with `kv: "reference"`: chains are decoded with the released code's cache, one by one."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from models.chain import Chain
from models.errors import InputError
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array, Backend
from service.backends.reference_kv import ReferenceSequence
from service.cola.evaluate import LanguageEvaluator, answer_of
from service.cola.evaluator import Answer, Evaluation
from service.engine.engine import Engine, new_future
from service.engine.executor import LayerCounter
from service.engine.language import LanguageEngine
from service.engine.prefix import PrefixCache
from service.engine.sampling import Choice, log_softmax, most_likely
from service.engine.shared import SharedWork, Slices, text_sample


class ReferenceEvaluator(LanguageEvaluator):
    """Nothing it says is what serving would say, so nothing is certified and nothing is shared."""

    is_exact = False

    async def answer(self, chain: Chain) -> Answer:
        sample = text_sample((*self._prompt, *self._prompt[:1]), 1, PrefixCache(0))
        work = SharedWork(future=new_future(), sample=sample, chains=(chain,), alone=partial(self._decode, chain))
        said: Answer
        (said,) = await self._engine.run([work])
        return said

    async def answers(self, chains: Sequence[Chain]) -> Sequence[Answer]:
        """One after the other, so that other work gets its turn between them."""
        return [await self.answer(chain) for chain in chains]

    async def evaluate(self, chains: Sequence[Chain], expected: Answer) -> Sequence[Evaluation]:
        answers = await self.answers(chains)
        return [Evaluation(one.agrees_with(expected), one.layer_evaluations, one.layer_evaluations) for one in answers]

    def _decode(self, chain: Chain, backend: Backend, counter: LayerCounter) -> Slices[Answer]:
        """Greedy decoding, on the device thread, in slices of one token."""
        if not isinstance(backend, LanguageBackend):
            raise InputError("kv 'reference' is not there on this backend; use kv 'exact'")
        sequence, choices, new = ReferenceSequence(backend, chain), list[Choice](), self._prompt
        while not self._is_over(choices):
            logits = sequence.logits(new)
            for layer in chain.layers:
                counter.count_layer_call(layer, 1, len(new))
            if not np.isfinite(logits).all():
                return Answer("", (), len(chain) * sequence.num_tokens)
            choices.append(Choice(int(logits.argmax()), *_likeliest(logits)))
            new = (choices[-1].token_id,)
            yield
        text = self._engine.tokenizer.decode([choice.token_id for choice in choices])
        return answer_of(text, choices, len(chain) * sequence.num_tokens)

    def _is_over(self, choices: Sequence[Choice]) -> bool:
        language = self._engine.language
        room = min(self._max_new_tokens, language.max_length - len(self._prompt))
        return len(choices) >= room or (bool(choices) and choices[-1].token_id in language.eos_token_ids)


def _likeliest(logits: Array) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log-probability of the likeliest token, and the two likeliest."""
    top = most_likely(log_softmax(logits), 2)
    return top[0][1], top


def reference_evaluator(
    engine: Engine, sample: object, max_new_tokens: int, choices: Sequence[str], wants_influence: bool
) -> ReferenceEvaluator:
    """The evaluator of one prompt. Raises InputError for whatever the released code cannot do."""
    if not isinstance(engine, LanguageEngine) or not isinstance(sample, str | list) or choices or wants_influence:
        raise InputError("kv 'reference' decodes prompts of language models; leave 'choices' and a prior out")
    return ReferenceEvaluator(engine, sample, max_new_tokens, max_bytes=0)
