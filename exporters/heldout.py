"""What a form of a model loses on samples that were never trained on, where the checkpoint ships some."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from exporters.parts import Parts, Run
from exporters.samples import HELDOUT, Sample, accuracy, read_samples
from models.artifact import Loss
from models.errors import InputError
from models.layered import LayeredModel

# Answers that a form may lose, as a part of all, before it is refused.
MAX_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The samples of one checkpoint, and what part of them eager torch answers rightly."""

    parts: Parts
    samples: Sequence[Sample]
    full: float

    def loss(self, whole: Run) -> Loss:
        """What the whole graph of a form gives on them."""
        metric = "exact_match" if self.parts.cached else "accuracy"
        found = _share(self.parts, self.samples, whole)
        return Loss(metric=metric, samples=len(self.samples), full=self.full, form=found)


def read_heldout(checkpoint: Path, model: LayeredModel, parts: Parts) -> HeldOut | None:
    """The samples beside a checkpoint, None if there are none. Raises InputError for lines of another form."""
    path = checkpoint / HELDOUT
    if parts.text_sizes or parts.sequence or not path.exists():  # of encoders and sequences no samples are read
        return None
    samples = [sample for sample in read_samples(path, model, checkpoint) if sample.answer is not None]
    size = parts.whole.examples[0][0].numel()
    if samples and not parts.cached and samples[0].inputs.numel() != size:
        raise InputError(f"{path} has rows of {samples[0].inputs.numel()} numbers and the model takes {size}")
    return HeldOut(parts, samples, _share(parts, samples, parts.whole))


def _share(parts: Parts, samples: Sequence[Sample], whole: Run) -> float:
    def logits(rows: Tensor) -> Tensor:
        if not parts.cached:
            return whole(rows.view(len(rows), *parts.whole.examples[0].shape[1:]))[0]
        # Keys and values of no token.
        nothing = (past[:, :1, :, :0].expand(-1, len(rows), -1, -1, -1) for past in parts.whole.examples[2:])
        return whole(rows, torch.zeros(len(rows), dtype=torch.int64), *nothing)[0]

    return accuracy(logits, samples)
