"""Lines of a held-out file, as a model reads them, and how many of them it answers right."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import InputError
from models.layered import LayeredModel
from models.lm.model import LanguageModel
from models.lm.tokenizer import Tokenizer

HELDOUT = "heldout.jsonl"


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
    tokenizer = Tokenizer(checkpoint / "tokenizer.json") if isinstance(model, LanguageModel) else None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{file} has no lines; write one sample on each")
    step = max(len(numbered) // limit, 1) if limit else 1
    chosen = numbered[::step][: limit or None]
    return [_sample(file, number, _object(file, number, line), model, tokenizer) for number, line in chosen]


def accuracy(model: LayeredModel, samples: Sequence[Sample]) -> float:
    """Part of the samples with an answer that the full chain answers right: the class, or every token, greedily.

    Raises InputError if no sample has an answer.
    """
    right = [_is_right(model, sample) for sample in samples if sample.answer is not None]
    if not right:
        raise InputError("no sample has a target to compare with; add targets")
    return sum(right) / len(right)


def _is_right(model: LayeredModel, sample: Sample) -> bool:
    """One pass over prompt and answer says the same as greedy decoding."""
    assert sample.answer is not None
    with torch.inference_mode():
        if not isinstance(model, LanguageModel):
            return (int(model(sample.inputs).argmax()),) == sample.answer
        best = model(sample.inputs)[0, -len(sample.answer) - 1 : -1].argmax(-1)
    return tuple(best.tolist()) == sample.answer


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} of {file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"line {number} of {file} is no JSON object; write one sample on each line")
    return found


def _sample(file: Path, number: int, found: dict[str, Any], model: LayeredModel, tokenizer: Tokenizer | None) -> Sample:
    field = "inputs" if tokenizer is None else "prompt"
    if field not in found:
        raise InputError(f"line {number} of {file} has no {field!r}; this model needs it")
    try:
        if tokenizer is None:
            answer = (int(found["target"]),) if "target" in found else None
            return Sample(torch.tensor([found["inputs"]], dtype=torch.float32), answer)
        return _text(found, model, tokenizer)
    except (TypeError, ValueError) as error:
        raise InputError(f"line {number} of {file}: {error}") from error


def _text(found: dict[str, Any], model: LayeredModel, tokenizer: Tokenizer) -> Sample:
    assert isinstance(model, LanguageModel)
    prompt = tokenizer.encode(found["prompt"])
    if "target" not in found:
        return Sample(torch.tensor([prompt]), None)
    answer = (*tokenizer.encode(found["target"]), *_end(model))
    return Sample(torch.tensor([(*prompt, *answer)]), answer)


def _end(model: LanguageModel) -> Iterator[int]:
    end = model.config.eos_token_id
    if end is not None:
        yield end if isinstance(end, int) else end[0]
