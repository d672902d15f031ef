"""Samples that many chains run on, and the work of running them. Plain records for search; they run nothing."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from models.chain import Chain
from service.backends.protocol import Array, Backend, Carry
from service.engine.executor import LayerCounter
from service.engine.prefix import Prefix, PrefixCache
from service.engine.work import Timing, Work

_T = TypeVar("_T")
# A computation that pauses after each slice, so that its thread can do something else first.
Slices: TypeAlias = Generator[None, None, _T]

# Samples whose padded lengths are equal can share a layer call.
_LENGTH_STEP = 8


@dataclass(eq=False, slots=True)
class SharedSample:
    """One input that many chains run on, and the carries their prefixes left.

    inputs: arrays of one row. Of texts also: length, the tokens that are no padding; and on language models the tokens
    [T] whose logits are wanted. Only the device thread touches `cache` while work on this sample is under way.
    before: where a text is read in stages, the sample of the tokens before these; keep: there are tokens after them.
    wants_influence: fill `influence` with 1 - cos(in, out) of each visit of the first chain (arXiv 2403.03853).
    """

    inputs: dict[str, Array]
    cache: PrefixCache
    length: int = 0
    tokens: tuple[int, ...] = ()
    before: "SharedSample | None" = None
    keep: bool = False
    wants_influence: bool = False
    influence: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens one visit evaluates; 1 for a row of a tensor model."""
        return max(self.length, 1)

    @property
    def stages(self) -> "tuple[SharedSample, ...]":
        """Everything that is read, up to this sample."""
        return (*self.before.stages, self) if self.before else (self,)

    @property
    def start(self) -> int:
        """Tokens read before these."""
        return sum(stage.length for stage in self.stages[:-1])

    @property
    def shape(self) -> tuple[object, ...]:
        """Samples of one shape can be joined; those of a later stage if just as much was read before."""
        before = tuple(stage.length for stage in self.stages[:-1])
        return (self.keep, before, *(array.shape for array in self.inputs.values()))

    def knows(self, prefix: Prefix) -> bool:
        """Whether the carry of a prefix is cached."""
        return (len(self.stages), prefix) in self.cache

    def recall(self, prefix: Prefix) -> Carry:
        """The cached carry of a prefix."""
        return self.cache.get((len(self.stages), prefix))

    def remember(self, prefix: Prefix, carry: Carry, num_bytes: int) -> None:
        """Cache the carry of a prefix."""
        self.cache.put((len(self.stages), prefix), carry, num_bytes)


def text_sample(
    token_ids: Sequence[int], num_targets: int, cache: PrefixCache, wants_influence: bool = False
) -> SharedSample:
    """A sequence whose last `num_targets` tokens are judged; the very last is not read, only judged."""
    length = len(token_ids) - 1
    inputs = {"token_ids": _padded(token_ids[:-1], _LENGTH_STEP)}
    judged = tuple(range(length - num_targets, length))
    return SharedSample(inputs, cache, length, judged, wants_influence=wants_influence)


def encoded_sample(
    token_ids: Sequence[int], token_types: Sequence[int] | None, cache: PrefixCache, wants_influence: bool = False
) -> SharedSample:
    """A text on an encoder; all of it is read at once."""
    inputs = {"token_ids": _padded(token_ids, _LENGTH_STEP), "lengths": np.asarray([len(token_ids)], np.int64)}
    if token_types is not None:
        inputs["token_types"] = _padded(token_types, _LENGTH_STEP)
    return SharedSample(inputs, cache, len(token_ids), wants_influence=wants_influence)


def text_stages(
    prompt: Sequence[int], target: Sequence[int], cache: PrefixCache, wants_influence: bool = False
) -> list[SharedSample]:
    """A prompt and its target, read in stages of which each judges a part of the target: 1 token, 1, 2, 4 and so on.

    A chain that fails in one stage need not be run in the next.
    """
    first = text_sample((*prompt, *target[:1]), 1, cache, wants_influence)
    first.keep = len(target) > 1
    stages, read = [first], 0
    while read < len(target) - 1:
        tokens = target[read : min(2 * read + 1, len(target) - 1)]
        read += len(tokens)
        inputs, judged = {"token_ids": _padded(tokens)}, tuple(range(len(tokens)))
        keep = read < len(target) - 1
        stages.append(SharedSample(inputs, cache, len(tokens), judged, before=stages[-1], keep=keep))
    return stages


def _padded(token_ids: Sequence[int], multiple_of: int = 1) -> Array:
    padded = np.zeros((1, -(-len(token_ids) // multiple_of) * multiple_of), dtype=np.int64)
    padded[0, : len(token_ids)] = token_ids
    return padded


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """Outputs along each chain, arrays without the batch axis, and the layer evaluations that were really made."""

    outputs: tuple[dict[str, Array], ...]
    layer_evaluations: int
    timing: Timing


@dataclass(eq=False, slots=True, kw_only=True)
class SharedWork(Work):
    """Chains of one sample to run. alone: answers instead of the shared way, on the device thread, in slices."""

    sample: SharedSample
    chains: tuple[Chain, ...]
    alone: Callable[[Backend, LayerCounter], Slices[object]] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.chains)

    @property
    def num_tokens(self) -> int:
        return self.sample.num_tokens * len(self.chains)
