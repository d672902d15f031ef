"""One checkpoint from several of one shape: the mean of their weights (model soups, arXiv 2203.05482)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exporters.passes.rewrite import read_tensors, rewrite
from exporters.samples import Sample, accuracy, read_samples
from models.checkpoint import load_checkpoint, read_raw
from models.errors import InputError
from models.layered import LayeredModel
from models.lm.wrapping import OURS
from models.shards import Shards

# Of config.json, what may differ between the ingredients of a soup.
_UNLIKE = {OURS, "dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures"}


def uniform(checkpoints: Sequence[Path], target: Path) -> None:
    """Write the mean of all checkpoints (section 2, "uniform soup"). Raises InputError if they are not of one shape."""
    _check(checkpoints)
    _write(checkpoints, target, f"uniform soup of {_named(checkpoints)}")


def greedy(checkpoints: Sequence[Path], target: Path, samples: Path) -> list[tuple[Path, float]]:
    """Write the mean of those that help: best first, each kept if accuracy on the samples does not fall (algorithm 1).

    Returns the checkpoints that were kept, each with the accuracy of the soup once it was in.
    """
    _check(checkpoints)
    models = [load_checkpoint(checkpoint) for checkpoint in checkpoints]
    read = read_samples(samples, models[0], checkpoints[0])
    alone = [accuracy(model, read) for model in models]
    kept: list[int] = []
    told: list[tuple[Path, float]] = []
    for place in sorted(range(len(models)), key=lambda i: -alone[i]):
        found = _accuracy_of([models[i] for i in (*kept, place)], checkpoints[0], read)
        if not told or found >= told[-1][1]:
            kept.append(place)
            told.append((checkpoints[place], found))
    _write([checkpoints[i] for i in kept], target, f"greedy soup of {_named([checkpoints[i] for i in kept])}")
    return told


def _accuracy_of(models: Sequence[LayeredModel], checkpoint: Path, samples: Sequence[Sample]) -> float:
    """Accuracy of the mean of several models of one shape."""
    mixed = load_checkpoint(checkpoint)
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            parameter.data = _mean([model.get_parameter(name) for model in models])
    return accuracy(mixed, samples)


def _write(checkpoints: Sequence[Path], target: Path, done: str) -> None:
    shards = [Shards(checkpoint) for checkpoint in checkpoints]
    tensors = {name: _mean([one.read(name) for one in shards]) for name in read_tensors(checkpoints[0])}
    rewrite(checkpoints[0], target, tensors, read_raw(checkpoints[0]), done)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """In float64, so that the order of the ingredients does not matter."""
    total = torch.stack([tensor.double() for tensor in tensors]).mean(0)
    return total.to(tensors[0].dtype)


def _check(checkpoints: Sequence[Path]) -> None:
    if len(checkpoints) < 2:
        raise InputError(f"{len(checkpoints)} checkpoint makes no soup; name two or more")
    first, names = _shape(checkpoints[0]), Shards(checkpoints[0]).names
    for other in checkpoints[1:]:
        found = _shape(other)
        unlike = sorted(key for key in {*first, *found} if first.get(key) != found.get(key))
        if unlike or Shards(other).names != names:
            raise InputError(f"{other} is not of the shape of {checkpoints[0]}: {unlike or 'other tensors'} differ")


def _shape(checkpoint: Path) -> dict[str, object]:
    return {key: value for key, value in read_raw(checkpoint).items() if key not in _UNLIKE}


def _named(checkpoints: Sequence[Path]) -> str:
    return ", ".join(checkpoint.resolve().name for checkpoint in checkpoints)
