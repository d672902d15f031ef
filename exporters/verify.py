"""Holds an exported form against eager torch, on sizes the exporter has not seen. Knows no file format."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from exporters.parts import BATCH, LENGTH, Parts, Runs, Tensors
from models.artifact import Difference, SequenceSpec
from models.errors import ArtifactError

TOLERANCE = 1e-4
BATCHES = (1, 3)
LENGTHS = (1, 12)
assert BATCH not in BATCHES
assert LENGTH not in LENGTHS


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one pass: those of embed, each layer's and the head's further ones, those of the whole graph."""

    batch: int
    length: int
    first: Tensors
    past: tuple[Tensors, ...]
    whole: Tensors
    last: Tensors = ()


def verify(runs: Runs, parts: Parts, tolerance: float = TOLERANCE, is_relative: bool = False) -> tuple[Difference, ...]:
    """Largest differences of the final outputs for each size, parts chained and whole, decoding included.

    What one part hands the next may differ by `tolerance` of its own magnitude, final outputs too if `is_relative`.
    Raises ArtifactError naming the part, the size and the difference that is too large, or the size it cannot run.
    """
    measured: dict[tuple[int, int], float] = {}
    for case in cases(parts):
        size = case.batch, case.length
        measured[size] = max(measured.get(size, 0.0), _measure(runs, parts, case, tolerance, is_relative))
    return tuple(Difference(batch=b, length=s, max_abs=largest) for (b, s), largest in measured.items())


def cases(parts: Parts) -> Iterator[Case]:
    """Seeded inputs of every size; for a language model also a continuation of each pass, rows unevenly cached."""
    random = torch.Generator().manual_seed(0)
    if parts.text_sizes:
        yield from _text_cases(parts, random, *parts.text_sizes)
        return
    if parts.sequence:
        yield from _sequence_cases(parts, parts.sequence, random)
        return
    if not parts.cached:
        for batch in BATCHES:
            inputs = torch.randn(batch, *parts.embed.examples[0].shape[1:], generator=random)
            yield Case(batch, 1, (inputs,), ((),) * len(parts.layers), (inputs,))
        return
    for batch, length in product(BATCHES, LENGTHS):
        nothing = tuple(tensor[:, :1, :, :0].expand(-1, batch, -1, -1, -1) for tensor in parts.whole.examples[2:])
        first = _language_case(parts, random, torch.zeros(batch, dtype=torch.int64), length, nothing)
        yield first
        _, *cached = parts.whole(*first.whole)
        # The last row sees all that is cached, the ones before less and less: the rest of their columns is padding.
        starts = (length - torch.arange(batch).flip(0)).clamp(min=0)
        yield _language_case(parts, random, starts, LENGTHS[0] + LENGTHS[1] - length, tuple(cached))


def _text_cases(parts: Parts, random: torch.Generator, vocabulary: int, longest: int) -> Iterator[Case]:
    """Texts of different lengths together, and of pairs where the model tells them apart."""
    lengths = {min(length, longest) for length in (*LENGTHS, *((parts.reach + 2,) if parts.reach else ()))}
    for batch, length in product(BATCHES, sorted(lengths)):
        token_ids = torch.randint(vocabulary, (batch, length), generator=random)
        counts = (length - torch.arange(batch).flip(0)).clamp(min=1)
        types = tuple(torch.randint(2, (batch, length), generator=random) for _ in parts.embed.inputs[1:])
        layers = ((counts,),) * len(parts.layers)
        last = (counts,) * len(parts.head.inputs[1:])
        yield Case(batch, length, (token_ids, *types), layers, (token_ids, counts, *types), last)


def _sequence_cases(parts: Parts, sequence: SequenceSpec, random: torch.Generator) -> Iterator[Case]:
    """First passes of one step, of some and of as many as one pass takes, and a continuation of each."""
    lengths = {min(length, sequence.max_chunk) for length in (*LENGTHS, sequence.max_chunk)}
    for batch, length in product(BATCHES, sorted(lengths)):
        stacks = parts.whole.examples[1:]
        state = tuple(stack.new_zeros(len(stack), batch, *stack.shape[2:]) for stack in stacks)
        for steps in (length, sequence.max_chunk + 1 - length):
            given = _steps(parts, sequence, batch, steps, random)
            layers = tuple(tuple(tensor[i].contiguous() for tensor in state) for i in range(len(parts.layers)))
            yield Case(batch, steps, (given,), layers, (given, *state))
            state = parts.whole(given, *state)[1:]


def _steps(parts: Parts, sequence: SequenceSpec, batch: int, length: int, random: torch.Generator) -> Tensor:
    if sequence.vocab_size:
        return torch.randint(sequence.vocab_size, (batch, length), generator=random)
    return torch.randn(batch, length, *parts.embed.examples[0].shape[2:], generator=random)


def _language_case(parts: Parts, random: torch.Generator, starts: Tensor, length: int, past: Tensors) -> Case:
    vocabulary = parts.head.outputs[0].dims[-1]
    assert isinstance(vocabulary, int)
    token_ids = torch.randint(vocabulary, (len(starts), length), generator=random)
    columns = torch.arange(past[0].shape[3])
    layers = tuple(tuple(tensor[i].contiguous() for tensor in past) for i in range(len(parts.layers)))
    return Case(len(starts), length, (token_ids, starts, columns), layers, (token_ids, starts, *past))


def _measure(runs: Runs, parts: Parts, case: Case, tolerance: float, is_relative: bool) -> float:
    """Largest difference of the final outputs of one pass."""
    eager = Runs(parts.embed, parts.layers, parts.head, parts.whole)
    largest = 0.0
    # The exported pass is a generator: what it raises comes out of `next`, at the part that failed.
    found = _passes(runs, parts, case)
    for name, wanted in _passes(eager, parts, case):
        if name == parts.whole.name and runs.whole is None:
            continue
        try:
            _, got = next(found)
        except Exception as error:  # runtimes share no error class
            raise ArtifactError(f"{name} does not run at batch {case.batch}, length {case.length}: {error}") from error
        final = name in (parts.head.name, parts.whole.name)
        difference = compare(name, case, got, wanted, tolerance, final and not is_relative)
        largest = max(largest, difference if final else 0.0)
    return largest


def _passes(runs: Runs, parts: Parts, case: Case) -> Iterator[tuple[str, Tensors]]:
    """Outputs of every part of the full chain, then of the whole graph."""
    if not parts.layers:
        assert runs.whole is not None
        yield parts.whole.name, runs.whole(*case.whole)
        return
    outputs = runs.embed(*case.first)
    yield parts.embed.name, outputs
    shared = outputs[1:]
    for part, layer, past in zip(parts.layers, runs.layers, case.past, strict=True):
        outputs = layer(outputs[0], *shared, *past)
        yield part.name, outputs
    yield parts.head.name, runs.head(outputs[0], *case.last)
    if runs.whole is not None:
        yield parts.whole.name, runs.whole(*case.whole)


def compare(name: str, case: Case, got: Tensors, wanted: Tensors, tolerance: float, is_absolute: bool) -> float:
    """Largest difference of the first output; raises ArtifactError for any output that is too far off."""
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in got]
    wanted_shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in wanted]
    where = f"{name} at batch {case.batch}, length {case.length}"
    if shapes != wanted_shapes:
        raise ArtifactError(f"{where} gives {shapes} where eager torch gives {wanted_shapes}")
    differences = [largest(a.double() - b.double()) for a, b in zip(got, wanted, strict=True)]
    for i, (difference, reference) in enumerate(zip(differences, wanted, strict=True)):
        bound = tolerance if is_absolute and i == 0 else tolerance * max(1.0, largest(reference.double()))
        if not difference <= bound:  # written so that NaN fails
            raise ArtifactError(f"{where} differs from eager torch by {difference:.3g}, more than {bound:.3g}")
    return differences[0]


def largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor, 0 for an empty one."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
