"""How far each layer alone takes a decoder from its answers when it becomes a ladder layer: where to begin a hybrid.

What several layers cost together is not the sum; it is what the hybrid of them is measured for.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from exporters.samples import HELDOUT, Sample, read_samples
from models.checkpoint import load_checkpoint
from models.errors import InputError
from models.lm.model import LanguageModel
from models.lm.residual import Residual

# Samples that are measured.
_SAMPLES = 64


def suggest(checkpoint: Path, samples: Path | None = None) -> list[float]:
    """What `sensitivity` says on a JSONL file, or else on the held-out one of the checkpoint. Raises InputError."""
    model = load_checkpoint(checkpoint)
    if not isinstance(model, LanguageModel) or model.config.residual.form != "standard" or model.config.is_parallel:
        raise InputError(
            f"{checkpoint} is no decoder of the standard residual form; only of these layers are converted"
        )
    return sensitivity(model, read_samples(samples or checkpoint / HELDOUT, model, checkpoint, _SAMPLES))


def sensitivity(model: LanguageModel, samples: Sequence[Sample]) -> list[float]:
    """Of each layer, nats a token from the model's next tokens to those of the hybrid of that layer, in the mean."""
    with torch.inference_mode():
        wanted = [_log_probabilities(model, sample) for sample in samples]
        return [_divergence(_hybrid(model, layer), samples, wanted) for layer in range(len(model.layers))]


def _hybrid(model: LanguageModel, layer: int) -> LanguageModel:
    """A model of the same parameters whose one ladder layer is `layer`."""
    with torch.device("meta"):
        hybrid = LanguageModel(replace(model.config, residual=Residual("ladder", (layer,))))
    hybrid.load_state_dict(model.state_dict(), assign=True)
    return hybrid.eval()


def _divergence(hybrid: LanguageModel, samples: Sequence[Sample], wanted: Sequence[Tensor]) -> float:
    each = [
        F.kl_div(_log_probabilities(hybrid, sample), told, log_target=True, reduction="none").sum(-1).flatten()
        for sample, told in zip(samples, wanted, strict=True)
    ]
    return float(torch.cat(each).mean())


def _log_probabilities(model: LanguageModel, sample: Sample) -> Tensor:
    """[1, S, V]"""
    return F.log_softmax(model(sample.inputs).double(), dim=-1)
