"""Many chains of few samples in one batch, every shared prefix run once, one layer call after the other. For search."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from service.backends.protocol import Array, Backend, Carry, Past, Rows
from service.engine.executor import LayerCounter
from service.engine.prefix import Node, NodeGroup, plan_prefixes
from service.engine.shared import SharedAnswer, SharedSample, SharedWork, Slices


class SharedRunner:
    """Runs shared work on one backend, in slices of one layer call."""

    def __init__(self, backend: Backend, counter: LayerCounter) -> None:
        self._backend, self._counter = backend, counter

    def run(self, works: Sequence[SharedWork]) -> Slices[list[object]]:
        """Answer all works; those of one shape share their layer calls."""
        answers: dict[int, object] = {}
        shapes: dict[object, list[int]] = {}
        for place, work in enumerate(works):
            if work.alone is not None:
                answers[place] = yield from work.alone(self._backend, self._counter)
            else:
                shapes.setdefault(work.sample.shape, []).append(place)
        for places in shapes.values():
            same = yield from self._run_shape([works[place] for place in places])
            answers.update(zip(places, same, strict=True))
        return [answers[place] for place in range(len(works))]

    def _run_shape(self, works: Sequence[SharedWork]) -> Slices[list[SharedAnswer]]:
        batch = _SharedBatch(self._backend, self._counter)
        leaves = [batch.leaves(work) for work in works]
        yield from batch.reach([leaf for group in leaves for leaf in group])
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
    samples: list[SharedSample] = field(default_factory=list)  # a node says its sample by its place here
    held: dict[Node, Carry] = field(default_factory=dict)
    unpaid: set[Node] = field(default_factory=set)

    def leaves(self, work: SharedWork) -> list[Node]:
        """The node at the end of each chain."""
        return [Node(self._place(work.sample), chain.layers) for chain in work.chains]

    def reach(self, leaves: Sequence[Node]) -> Slices[None]:
        """Run every prefix that is missing for `leaves`, which are of one stage, and for those of the stages before."""
        groups = plan_prefixes(leaves, lambda node: node in self.held or self.samples[node.sample].knows(node.prefix))
        made = {node: None for group in groups for node in group.nodes}
        for node in dict.fromkeys((*leaves, *(node.parent for node in made))):
            if node not in made and node not in self.held:
                self.held[node] = self._known(node)
        for earlier in zip(*map(self._earlier, made), strict=True):
            yield from self.reach(earlier)
        for group in groups:
            self._visit(group)
            yield

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
        prefixes = {leaf.prefix[:end] for leaf in leaves for end in range(1, len(leaf.prefix) + 1)}
        places = [self._place(stage) for stage in work.sample.stages]
        new = {Node(place, prefix) for place in places for prefix in prefixes} & self.unpaid
        self.unpaid -= new
        return sum(self.samples[node.sample].num_tokens for node in new)

    def _place(self, sample: SharedSample) -> int:
        if sample not in self.samples:
            self.samples.append(sample)
        return self.samples.index(sample)

    def _earlier(self, node: Node) -> list[Node]:
        """The same visits of the tokens before, stage by stage."""
        return [Node(self._place(stage), node.prefix) for stage in self.samples[node.sample].stages[:-1]]

    def _known(self, node: Node) -> Carry:
        """The cached carry of a node; that of a root is made the first time."""
        sample = self.samples[node.sample]
        if not node.prefix and not sample.knows(()):
            root = self.backend.embed(sample.inputs, self._rows((node,)))
            sample.remember((), root, self.backend.num_bytes(root))
        return sample.recall(node.prefix)

    def _visit(self, group: NodeGroup) -> None:
        carry = self.backend.join([self.held[node.parent] for node in group.nodes])
        tokens = sum(self.samples[node.sample].num_tokens for node in group.nodes)
        self.counter.count_layer_call(group.layer, len(group.nodes), tokens)
        after = self.backend.layer(group.layer, carry, self._rows(group.nodes))
        for row, node in enumerate(group.nodes):
            one = self.backend.select(after, np.asarray([row]))
            self.held[node] = one
            self.unpaid.add(node)
            self.samples[node.sample].remember(node.prefix, one, self.backend.num_bytes(one))

    def _rows(self, nodes: Sequence[Node]) -> Rows | None:
        samples = [self.samples[node.sample] for node in nodes]
        if not samples[0].length:
            return None
        starts = np.asarray([sample.start for sample in samples], np.int64)
        lengths = np.asarray([sample.length for sample in samples], np.int64)
        return Rows(starts, lengths, past=self._past(nodes), keep=samples[0].keep)

    def _past(self, nodes: Sequence[Node]) -> tuple[Past, ...]:
        """What the visits of `nodes`, which are of one stage, left of the tokens before; a root makes no visit."""
        if not nodes[0].prefix:
            return ()
        earlier = zip(*map(self._earlier, nodes), strict=True)
        return tuple(
            Past(self.backend.join([self.held[node] for node in same]), self.samples[same[0].sample].length)
            for same in earlier
        )


def _turned(before: Array, after: Array) -> float:
    """1 - cos between vectors [T, D], 0..2, mean over T; 0 where they are not finite or zero."""
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosines = np.divide((before * after).sum(axis=-1), norms, out=np.ones_like(norms), where=norms > 0)
    mean = float(1 - cosines.mean())
    return max(mean, 0.0) if np.isfinite(mean) else 0.0
