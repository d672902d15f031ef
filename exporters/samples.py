"""Lines of a held-out file, as a model reads them, and how many of them are answered rightly, by whatever runs it."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from exporters.generation import end_token_ids
from models.errors import InputError
from models.layered import LayeredModel
from models.lm.model import LanguageModel
from models.lm.tokenizer import Tokenizer

HELDOUT = "heldout.jsonl"
# Rows [B, S] of token ids or [B, F] of numbers to logits [B, S, V] or [B, C].
Logits: TypeAlias = Callable[[Tensor], Tensor]
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """What goes in, [1, S] token ids with the answer or [1, F] numbers, and what is to come out.

    `answer` are the last tokens, the end among them, or the class; None where nobody knows it.
    """

    inputs: Tensor
    answer: tuple[int, ...] | None


def read_samples(file: Path, model: LayeredModel, checkpoint: Path, limit: int | None = None) -> list[Sample]:
    """Every line {"prompt", "target"} or {"inputs", "target"} of a JSONL file; targets may be left out.

    With a `limit`, as many lines, evenly spread. Raises InputError naming the line that is none.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    read = _Texts(model, checkpoint) if isinstance(model, LanguageModel) else _numbers
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{file} has no lines; write one sample on each")
    step = max(len(numbered) // limit, 1) if limit else 1
    samples = [_read(file, number, line, read) for number, line in numbered[::step][: limit or None]]
    if not isinstance(model, LanguageModel) and len({sample.inputs.shape for sample in samples}) > 1:
        raise InputError(f"{file} has rows of several sizes; a model takes rows of one")
    return samples


def accuracy(logits: Logits, samples: Sequence[Sample]) -> float:
    """Part of the samples with an answer that is given rightly: the class, or every token, greedily.

    Raises InputError if no sample has an answer.
    """
    told = sorted((sample for sample in samples if sample.answer is not None), key=lambda one: one.inputs.shape[1])
    if not told:
        raise InputError("no sample has a target to compare with; add targets")
    return sum(is_right for batch in _batches(told) for is_right in _right(logits, batch)) / len(told)


def _batches(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    yield from (samples[first : first + _ROWS] for first in range(0, len(samples), _ROWS))


def _right(logits: Logits, samples: Sequence[Sample]) -> Iterator[bool]:
    """One pass over prompt and answer says the same as greedy decoding; what lies behind a text changes nothing."""
    rows = pad_sequence([sample.inputs[0] for sample in samples], batch_first=True)
    with torch.inference_mode():
        best = logits(rows).argmax(-1)  # [B, S] or [B]
    for row, sample in zip(best, samples, strict=True):
        assert sample.answer is not None
        end = sample.inputs.shape[1] - 1
        found = row[end - len(sample.answer) : end] if row.dim() else row[None]
        yield tuple(found.tolist()) == sample.answer


def _read(file: Path, number: int, line: str, read: Callable[[dict[str, Any]], Sample]) -> Sample:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} of {file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"line {number} of {file} is no JSON object; write one sample on each line")
    try:
        return read(found)
    except KeyError as error:
        raise InputError(f"line {number} of {file} has no {error}; this model needs it") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"line {number} of {file}: {error}") from error


def _numbers(found: dict[str, Any]) -> Sample:
    inputs, answer = found["inputs"], (int(found["target"]),) if "target" in found else None
    if not isinstance(inputs, list):
        raise ValueError(f"inputs = {inputs!r} is no list of numbers")
    return Sample(torch.tensor([inputs], dtype=torch.float32), answer)


class _Texts:
    """Prompts and answers as tokens; the end token belongs to the answer."""

    def __init__(self, model: LanguageModel, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer(checkpoint / "tokenizer.json")
        self._end = end_token_ids(checkpoint, model.config.eos_token_id)[:1]

    def __call__(self, found: dict[str, Any]) -> Sample:
        prompt = self._tokenizer.encode(found["prompt"])
        if "target" not in found:
            return Sample(torch.tensor([prompt]), None)
        answer = (*self._tokenizer.encode(found["target"]), *self._end)
        return Sample(torch.tensor([(*prompt, *answer)]), answer)
