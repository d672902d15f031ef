"""Answers of one model version that were given before, to be given again without running a layer. Lives on the loop.

The key is all an answer depends on: the content, the chain, and of a generation its sampling with the seed. So an
answer from here is the one that running would give.
"""

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from service.engine.work import (
    EncodeWork,
    Generated,
    GenerateWork,
    Score,
    ScoreWork,
    SequenceWork,
    Tensors,
    TensorWork,
    Timing,
    Work,
)

_Answer: TypeAlias = Tensors | Score | Generated
_AT_ONCE = Timing(0.0, 0.0, is_cached=True)
# What Python spends on an entry, on a token, and on an alternative of a token.
_ENTRY_BYTES, _TOKEN_BYTES, _TOP_BYTES = 512, 200, 120


class ResponseCache:
    """The answers used last, as many as fit."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[bytes, tuple[_Answer, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> _Answer | None:
        """The answer given before; its timing says that it took none."""
        if key not in self._answers:
            return None
        self._answers.move_to_end(key)
        return self._answers[key][0]

    def put(self, key: bytes, answer: _Answer) -> None:
        """Keep an answer, in place of those not used for longest; one that alone is too large is not kept."""
        kept = _kept(answer)
        size = _num_bytes(kept)
        if size > self._max_bytes:
            return
        _, replaced = self._answers.pop(key, (None, 0))
        self._answers[key] = (kept, size)
        self.num_bytes += size - replaced
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._answers.popitem(last=False)[1][1]


def key_of(work: Work) -> bytes | None:
    """All that the answer to this work depends on, hashed; None for work that is not answered from memory."""
    digest = hashlib.blake2b(type(work).__name__.encode(), digest_size=32)
    if isinstance(work, TensorWork):
        for name, array in sorted(work.inputs.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        said: object = work.chains
    elif isinstance(work, SequenceWork) and not work.keeps:
        digest.update(f"{work.steps.dtype.str} {work.steps.shape}\n".encode())
        digest.update(np.ascontiguousarray(work.steps).data)
        said = work.chain
    elif isinstance(work, ScoreWork):
        said = (work.token_ids, work.num_targets, work.chain)
    elif isinstance(work, EncodeWork):
        said = (work.token_ids, work.token_types, work.chain)
    elif isinstance(work, GenerateWork):
        said = (work.prompt, work.chain, work.sampling)
    else:
        return None
    digest.update(repr(said).encode())
    return digest.digest()


def _kept(answer: _Answer) -> _Answer:
    if isinstance(answer, Tensors):
        # Of its own: what came is a view of a whole batch, and whoever got it may change it.
        outputs = {name: array.copy() for name, array in answer.outputs.items()}
        for array in outputs.values():
            array.setflags(write=False)
        return Tensors(outputs, _AT_ONCE)
    return replace(answer, timing=_AT_ONCE)


def _num_bytes(answer: _Answer) -> int:
    if isinstance(answer, Tensors):
        return _ENTRY_BYTES + sum(array.nbytes for array in answer.outputs.values())
    if isinstance(answer, Score):
        return _ENTRY_BYTES + _TOKEN_BYTES * len(answer.greedy)
    return _ENTRY_BYTES + sum(_TOKEN_BYTES + _TOP_BYTES * len(choice.top) for choice in answer.choices)
