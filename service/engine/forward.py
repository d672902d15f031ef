"""One-pass work: tensor rows, sequences scored or embedded, and texts encoded. Many units of work, one batch."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from models.errors import ChainError
from service.backends.protocol import Array, Ints
from service.engine.executor import Batch, Executor, pad
from service.engine.sampling import log_softmax
from service.engine.work import Embedded, EmbedWork, EncodeWork, Score, ScoreWork, Tensors, TensorWork

# Padding that costs less than a batch of its own.
_FEW_TOKENS = 16


def run_tensors(executor: Executor, works: Sequence[TensorWork]) -> list[Tensors]:
    """Answer tensor work of one model together; inputs are joined along the batch axis and outputs split again."""
    if len(works) == 1:
        return [Tensors(executor.run(Batch(works[0].inputs, works[0].chains)), works[0].timing())]
    inputs = {name: np.concatenate([work.inputs[name] for work in works]) for name in works[0].inputs}
    outputs = executor.run(Batch(inputs, tuple(chain for work in works for chain in work.chains)))
    ends = list(accumulate(work.num_rows for work in works))
    return [
        Tensors({name: array[end - work.num_rows : end] for name, array in outputs.items()}, work.timing())
        for work, end in zip(works, ends, strict=True)
    ]


def run_scores(executor: Executor, works: Sequence[ScoreWork]) -> list[Score | ChainError]:
    """Score sequences together: no cache, every token of a sequence in one pass."""
    token_ids, lengths = pad([work.token_ids[:-1] for work in works])  # the last token is only judged
    longest = max(work.num_targets for work in works)
    # Logits at position t judge token t + 1; rows with fewer targets repeat their last position.
    tokens = np.minimum(
        (lengths - [work.num_targets for work in works])[:, None] + np.arange(longest), lengths[:, None] - 1
    )
    batch = Batch(
        {"token_ids": token_ids}, tuple(work.chain for work in works), np.zeros_like(lengths), lengths, tokens
    )
    logits = executor.run(batch)["logits"]  # [B, T, V]
    return [_score(work, logits[row, : work.num_targets]) for row, work in enumerate(works)]


def run_embeds(executor: Executor, works: Sequence[EmbedWork]) -> list[Embedded | ChainError]:
    """Embed sequences together: no cache and no head; padding has no part in the mean."""
    token_ids, lengths = pad([work.token_ids for work in works])
    batch = Batch({"token_ids": token_ids}, tuple(work.chain for work in works), np.zeros_like(lengths), lengths)
    streams = executor.stream(batch)  # [B, S, D]
    return [_embedded(work, stream[:length]) for work, stream, length in zip(works, streams, lengths, strict=True)]


def run_encodes(executor: Executor, works: Sequence[EncodeWork]) -> list[Tensors | ChainError]:
    """Read texts together, as far as their lengths are alike: padding has no part in any output, and costs the same."""
    answers: list[Tensors | ChainError | None] = [None] * len(works)
    for places in _alike([work.num_tokens for work in works]):
        for place, answer in zip(places, _encode(executor, [works[place] for place in places]), strict=True):
            answers[place] = answer
    return answers  # type: ignore[return-value]


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places whose lengths differ by no more than a factor of two, and few tokens, from the shortest on."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[place] > 2 * lengths[group[0]] + _FEW_TOKENS:
            yield group
            group = []
        group.append(place)
    yield group


def _encode(executor: Executor, works: Sequence[EncodeWork]) -> list[Tensors | ChainError]:
    token_ids, lengths = pad([work.token_ids for work in works])
    inputs: dict[str, Array] = {"token_ids": token_ids, "lengths": lengths}
    if works[0].token_types is not None:
        inputs["token_types"], _ = pad([work.token_types or () for work in works])
    wanted = None if works[0].places is None else _repeated([work.places or () for work in works])
    chains = tuple(work.chain for work in works)
    outputs = executor.run(Batch(inputs, chains, np.zeros_like(lengths), lengths, wanted))
    return [_encoded(work, {name: array[row] for name, array in outputs.items()}) for row, work in enumerate(works)]


def overflow(chain: object) -> ChainError:
    """The error of a chain along which the numbers left float32."""
    return ChainError(f"along chain {chain} the outputs are not finite; repeat fewer layers")


def _repeated(places: Sequence[Sequence[int]]) -> Ints:
    """Places [B, T]; rows with fewer repeat their last."""
    longest = max(map(len, places))
    return np.asarray([[*row, *[row[-1]] * (longest - len(row))] for row in places], dtype=np.int64)


def _encoded(work: EncodeWork, outputs: dict[str, Array]) -> Tensors | ChainError:
    if work.places is not None or work.is_per_token:
        count = len(work.token_ids) if work.places is None else len(work.places)
        outputs = {name: array[:count] for name, array in outputs.items()}
    if not all(np.isfinite(array).all() for array in outputs.values()):
        return overflow(work.chain)
    return Tensors({name: array[None] for name, array in outputs.items()}, work.timing())


def _embedded(work: EmbedWork, stream: Array) -> Embedded | ChainError:
    mean = stream.mean(axis=0, dtype=np.float64)
    norm = np.linalg.norm(mean)
    if not np.isfinite(norm):
        return overflow(work.chain)
    return Embedded((mean / (norm or 1.0)).astype(np.float32), work.timing())


def _score(work: ScoreWork, logits: Array) -> Score | ChainError:
    if not np.isfinite(logits).all():
        return overflow(work.chain)
    logprobs = log_softmax(logits)[np.arange(work.num_targets), list(work.token_ids[-work.num_targets :])]
    greedy = logits.argmax(axis=-1)
    return Score(tuple(map(float, logprobs)), tuple(map(int, greedy)), work.timing())
