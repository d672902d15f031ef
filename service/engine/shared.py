"""Many chains of few samples in one batch, every shared prefix run once. For search; nothing is cached per token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from models.chain import Chain
from service.backends.protocol import Array, Backend, Carry, Ints, Rows
from service.engine.executor import LayerCounter
from service.engine.prefix import Node, NodeGroup, PrefixCache, leaves_of, plan_prefixes
from service.engine.work import Timing, Work

# Samples whose padded lengths are equal can share a layer call.
_LENGTH_STEP = 8


@dataclass(eq=False, slots=True)
class SharedSample:
    """One input that many chains run on, and the carries their prefixes left.

    inputs: arrays of one row. Language models also: length, the tokens that are no padding, and the tokens [T] whose
    logits are wanted. Only the device thread touches `cache` while work on this sample is under way.
    wants_influence: fill `influence` with 1 - cos(in, out) of each visit of the first chain (arXiv 2403.03853).
    """

    inputs: dict[str, Array]
    cache: PrefixCache
    length: int = 0
    tokens: tuple[int, ...] = ()
    wants_influence: bool = False
    influence: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens one visit evaluates; 1 for a row of a tensor model."""
        return max(self.length, 1)

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Samples of one shape can be joined."""
        return tuple(array.shape for array in self.inputs.values())


def text_sample(
    token_ids: Sequence[int], num_targets: int, cache: PrefixCache, wants_influence: bool = False
) -> SharedSample:
    """A sequence whose last `num_targets` tokens are judged; the very last is not read, only judged."""
    length = len(token_ids) - 1
    padded = np.zeros((1, -(-length // _LENGTH_STEP) * _LENGTH_STEP), dtype=np.int64)
    padded[0, :length] = token_ids[:-1]
    judged = tuple(range(length - num_targets, length))
    return SharedSample({"token_ids": padded}, cache, length, judged, wants_influence)


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """Outputs along each chain, arrays without the batch axis, and the layer evaluations that were really made."""

    outputs: tuple[dict[str, Array], ...]
    layer_evaluations: int
    timing: Timing


@dataclass(eq=False, slots=True, kw_only=True)
class SharedWork(Work):
    """Chains of one sample to run. alone: answers instead of the shared way, on the device thread."""

    sample: SharedSample
    chains: tuple[Chain, ...]
    alone: Callable[[Backend, LayerCounter], object] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.chains)

    @property
    def num_tokens(self) -> int:
        return self.sample.num_tokens * len(self.chains)


class SharedRunner:
    """Runs shared work on one backend."""

    def __init__(self, backend: Backend, counter: LayerCounter) -> None:
        self._backend, self._counter = backend, counter

    def run(self, works: Sequence[SharedWork]) -> list[object]:
        """Answer all works; those of one shape share their layer calls."""
        answers: dict[int, object] = {
            place: work.alone(self._backend, self._counter)
            for place, work in enumerate(works)
            if work.alone is not None
        }
        sharing = [(place, work.sample.shape) for place, work in enumerate(works) if work.alone is None]
        for shape in dict.fromkeys(shape for _, shape in sharing):
            same = [place for place, one in sharing if one == shape]
            answers.update(zip(same, self._run_shape([works[place] for place in same]), strict=True))
        return [answers[place] for place in range(len(works))]

    def _run_shape(self, works: Sequence[SharedWork]) -> list[SharedAnswer]:
        samples = list({id(work.sample): work.sample for work in works}.values())
        places = {id(sample): place for place, sample in enumerate(samples)}
        leaves = [leaves_of(places[id(work.sample)], work.chains) for work in works]
        batch = _SharedBatch(self._backend, self._counter, samples)
        batch.reach([leaf for group in leaves for leaf in group])
        for group in leaves:
            batch.measure(group[0])
        return [
            SharedAnswer(batch.outputs(group), batch.spent(work, group), work.timing())
            for work, group in zip(works, leaves, strict=True)
        ]


@dataclass(slots=True)
class _SharedBatch:
    """The carries of one batch: kept until it ends, whatever the samples' caches forget meanwhile."""

    backend: Backend
    counter: LayerCounter
    samples: Sequence[SharedSample]
    held: dict[Node, Carry] = field(default_factory=dict)
    unpaid: set[Node] = field(default_factory=set)

    def reach(self, leaves: Sequence[Node]) -> None:
        """Run every prefix that is missing for `leaves`."""
        for place, sample in enumerate(self.samples):
            self._begin(Node(place, ()), sample)
        groups = plan_prefixes(leaves, lambda node: node.prefix in self.samples[node.sample].cache)
        made = {node for group in groups for node in group.nodes}
        for node in {*leaves, *(node.parent for node in made)} - made:
            self.held[node] = self.samples[node.sample].cache.get(node.prefix)
        for group in groups:
            self._visit(group)

    def outputs(self, leaves: Sequence[Node]) -> tuple[dict[str, Array], ...]:
        """The head's outputs at each leaf."""
        tokens = self.samples[leaves[0].sample].tokens
        carry = self.backend.join([self.held[leaf] for leaf in leaves])
        wanted = np.tile(np.asarray(tokens, dtype=np.int64), (len(leaves), 1)) if tokens else None
        outputs = self.backend.head(carry, wanted)
        return tuple({name: array[row] for name, array in outputs.items()} for row in range(len(leaves)))

    def measure(self, leaf: Node) -> None:
        """Fill the sample's influence from the visits of its first chain, which were all made in this batch."""
        sample = self.samples[leaf.sample]
        if not sample.wants_influence or sample.influence:
            return
        prefixes = [Node(leaf.sample, leaf.prefix[:end]) for end in range(len(leaf.prefix) + 1)]
        streams = [self.backend.stream(self.held[node])[0] for node in prefixes]
        # Tokens past the length are padding; a row of a tensor model has one vector.
        vectors = [stream[: sample.length] if sample.length else stream.reshape(1, -1) for stream in streams]
        sample.influence = tuple(_turned(before, after) for before, after in pairwise(vectors))

    def spent(self, work: SharedWork, leaves: Sequence[Node]) -> int:
        """Layer evaluations made for this work; a prefix two works of one batch share is paid by the first."""
        mine = {Node(leaf.sample, leaf.prefix[:end]) for leaf in leaves for end in range(1, len(leaf.prefix) + 1)}
        new = mine & self.unpaid
        self.unpaid -= new
        return len(new) * work.sample.num_tokens

    def _begin(self, root: Node, sample: SharedSample) -> None:
        if () not in sample.cache:
            carry = self.backend.embed(sample.inputs, self._rows((root,)))
            sample.cache.put((), carry, self.backend.num_bytes(carry))

    def _visit(self, group: NodeGroup) -> None:
        carry = self.backend.join([self.held[node.parent] for node in group.nodes])
        rows = self._rows(group.nodes)
        tokens = sum(self.samples[node.sample].num_tokens for node in group.nodes)
        self.counter.count_layer_call(group.layer, len(group.nodes), tokens)
        after = self.backend.layer(group.layer, carry, rows)
        for row, node in enumerate(group.nodes):
            one = self.backend.select(after, (row,))
            self.held[node] = one
            self.unpaid.add(node)
            self.samples[node.sample].cache.put(node.prefix, one, self.backend.num_bytes(one))

    def _rows(self, nodes: Sequence[Node]) -> Rows | None:
        lengths: Ints = np.asarray([self.samples[node.sample].length for node in nodes], dtype=np.int64)
        return Rows(np.zeros_like(lengths), lengths) if lengths.any() else None


def _turned(before: Array, after: Array) -> float:
    """1 - cos between vectors [T, D], 0..2, mean over T; 0 where they are not finite or zero."""
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosines = np.divide((before * after).sum(axis=-1), norms, out=np.ones_like(norms), where=norms > 0)
    mean = float(1 - cosines.mean())
    return max(mean, 0.0) if np.isfinite(mean) else 0.0
