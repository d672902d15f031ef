"""What a form of a model loses on samples that were never trained on, where the checkpoint ships some.

`heldout.jsonl` has one sample a line: `inputs` and `target` of a classifier, `prompt` and `target` of a language model.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.parts import Parts, Run
from models.artifact import LanguageSpec, Loss
from models.errors import ArtifactError, FathomError
from models.lm.tokenizer import Tokenizer

FILE = "heldout.jsonl"
# Answers that a form may lose, as a part of all, before it is refused.
MAX_LOSS = 0.02
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs of the whole graph's first input, and what must follow: a class, or tokens."""

    inputs: tuple[float, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The samples of one checkpoint, and how many of them eager torch answers rightly."""

    parts: Parts
    samples: tuple[Sample, ...]
    metric: str
    full: float

    def loss(self, whole: Run) -> Loss:
        """What the whole graph of a form gives on them."""
        return Loss(metric=self.metric, samples=len(self.samples), full=self.full, form=self._share(whole))

    def _share(self, whole: Run) -> float:
        return _share(self.parts, self.samples, whole)


def read_heldout(checkpoint: Path, parts: Parts, language: LanguageSpec | None) -> HeldOut | None:
    """The samples beside a checkpoint, None if there are none. Raises ArtifactError for lines of another form."""
    path = checkpoint / FILE
    if parts.text_sizes or not path.exists():  # of encoders no samples are read
        return None
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        read = _classified if language is None else _Continued(checkpoint, language)
        samples = tuple(read(line) for line in lines)
    except FathomError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds no samples of this model: {error!r}; correct it or take it away") from error
    if not samples:
        return None
    metric = "accuracy" if language is None else "exact_match"
    return HeldOut(parts, samples, metric, _share(parts, samples, parts.whole))


def _classified(line: dict[str, Any]) -> Sample:
    return Sample(tuple(line["inputs"]), (int(line["target"]),))


class _Continued:
    """Prompts and answers as tokens; the end token belongs to the answer."""

    def __init__(self, checkpoint: Path, language: LanguageSpec) -> None:
        self._tokenizer = Tokenizer(checkpoint / language.tokenizer)
        self._end = language.eos_token_ids[:1]

    def __call__(self, line: dict[str, Any]) -> Sample:
        return Sample(self._tokenizer.encode(line["prompt"]), (*self._tokenizer.encode(line["target"]), *self._end))


def _share(parts: Parts, samples: Sequence[Sample], whole: Run) -> float:
    """Samples answered rightly, as a part of all."""
    num_right = 0
    ordered = sorted(samples, key=lambda sample: len(sample.inputs) + len(sample.target))
    for first in range(0, len(ordered), _ROWS):
        batch = ordered[first : first + _ROWS]
        num_right += sum(_continued(parts, batch, whole) if parts.cached else _classes(parts, batch, whole))
    return num_right / len(samples)


def _classes(parts: Parts, samples: Sequence[Sample], whole: Run) -> Iterator[bool]:
    shape = parts.whole.examples[0].shape[1:]
    rows = torch.tensor([sample.inputs for sample in samples]).view(len(samples), *shape)
    answers = whole(rows)[0].argmax(-1).tolist()
    return (answer == sample.target[0] for answer, sample in zip(answers, samples, strict=True))


def _continued(parts: Parts, samples: Sequence[Sample], whole: Run) -> Iterator[bool]:
    """Whether greedy decoding gives exactly the target: each of its tokens is the likeliest after those before it."""
    texts = [(*(int(token) for token in sample.inputs), *sample.target) for sample in samples]
    token_ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in enumerate(texts):
        token_ids[row, : len(text)] = torch.tensor(text)
    likeliest = whole(token_ids, torch.zeros(len(texts), dtype=torch.int64), *_nothing(parts, len(texts)))[0].argmax(-1)
    for row, sample in enumerate(samples):
        start = len(sample.inputs) - 1
        yield likeliest[row, start : start + len(sample.target)].tolist() == list(sample.target)


def _nothing(parts: Parts, num_rows: int) -> tuple[Tensor, ...]:
    """Keys and values of no token."""
    return tuple(tensor[:, :1, :, :0].expand(-1, num_rows, -1, -1, -1) for tensor in parts.whole.examples[2:])
