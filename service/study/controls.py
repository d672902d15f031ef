"""What a search has to beat at equal budget: random chains, and temperature samples of the unchanged model."""

from random import Random

import numpy as np

from models.chain import Chain
from service.cola.classify import row_sample
from service.cola.evaluator import Answer
from service.cola.space import Space
from service.engine.encoder import EncoderEngine
from service.engine.engine import Engine
from service.engine.language import LanguageEngine
from service.engine.prefix import PrefixCache
from service.engine.sampling import log_softmax
from service.engine.sequence import SequenceEngine
from service.engine.shared import SharedSample, text_sample
from service.engine.tensor import TensorEngine, read_inputs

# Random chains are 1 to 4 edits away from the full chain.
MAX_EDITS = 4
# A small space has fewer distinct chains than the budget: give up after so many draws for each one wanted.
_DRAWS_PER_CHAIN = 20


def random_chains(space: Space, full: Chain, count: int, rng: Random) -> list[Chain]:
    """The full chain, as every search tries it, and distinct random ones, `count` in all or as many as turn up."""
    chains = {full: None}
    for _ in range(count * _DRAWS_PER_CHAIN):
        if len(chains) == count:
            break
        chain = full
        for _ in range(rng.randint(1, MAX_EDITS)):
            chain = next(space.draw(chain, rng), chain)
        chains[chain] = None
    return list(chains)


async def log_probability(
    engine: Engine, sample: object, answer: Answer, temperatures: tuple[float, ...]
) -> list[float]:
    """How likely the full chain gives exactly this answer when drawn at each temperature, natural logarithms.

    Exact, by teacher forcing: drawing would only estimate it. n draws hit with probability 1 - (1 - p)^n.
    """
    (outputs,) = (await engine.explore(_shared(engine, sample, answer), [engine.full])).outputs
    logits = next(iter(outputs.values()))  # [T, V] for T answer tokens, or [C] for classes
    if isinstance(engine, SequenceEngine):
        logits = logits[-1]  # [T, C] for each step
    each = logits.reshape(len(answer.token_ids), -1)
    places = np.arange(len(each)), np.asarray(answer.token_ids)
    return [float(log_softmax((each / one).astype(np.float32))[places].sum()) for one in temperatures]


def sampling_cost(engine: Engine, sample: object, answer: Answer) -> tuple[int, int]:
    """Layer evaluations of drawing answers of this length: once for the prompt, then for each answer."""
    if isinstance(engine, EncoderEngine):
        return 0, engine.num_layers * len(engine.tokens(sample).ids)  # type: ignore[arg-type]
    if isinstance(engine, SequenceEngine):
        return 0, engine.num_layers * len(engine.sequences([sample])[0])
    if not isinstance(engine, LanguageEngine):
        return 0, engine.num_layers
    prompt = engine.encode(sample)  # type: ignore[arg-type]
    return engine.num_layers * len(prompt), engine.num_layers * len(answer.token_ids)


def _shared(engine: Engine, sample: object, answer: Answer) -> SharedSample:
    cache = PrefixCache(max_bytes=0)
    if isinstance(engine, LanguageEngine):
        prompt = engine.encode(sample)  # type: ignore[arg-type]
        return text_sample(prompt + answer.token_ids, len(answer.token_ids), cache)
    if isinstance(engine, EncoderEngine):
        return engine.sample(engine.tokens(sample), cache)  # type: ignore[arg-type]
    assert isinstance(engine, TensorEngine)
    return row_sample(engine, read_inputs([sample], engine.manifest.inputs), cache)
