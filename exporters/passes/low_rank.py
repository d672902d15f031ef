"""A checkpoint whose projections are products of two thin matrices, by singular values."""

from pathlib import Path

import torch
from torch import Tensor

from exporters.passes.rewrite import read_tensors, rewrite
from models.checkpoint import load_checkpoint, read_raw
from models.errors import InputError
from models.lm.architectures import ARCHITECTURES
from models.lm.linear import rank_of
from models.lm.model import LanguageModel
from models.lm.sources import source, stored_name


def low_rank(checkpoint: Path, target: Path, kept: float) -> None:
    """Write a decoder with a part `kept` of the weights of each projection: its best approximation of that rank.

    The best in the Frobenius norm (Eckart and Young, 1936). Raises InputError for another kind of model, or a part that
    is none.
    """
    model = load_checkpoint(checkpoint)
    if (
        not isinstance(model, LanguageModel)
        or model.config.kept_weights is not None
        or model.config.residual.has_streams
    ):
        raise InputError(f"{checkpoint} is no decoder of whole matrices; only these are brought to a lower rank")
    if not 0 < kept < 1:
        raise InputError(f"{kept} of the weights cannot be kept; choose a part between 0 and 1")
    raw, tensors = read_raw(checkpoint), read_tensors(checkpoint)
    architecture, there = ARCHITECTURES[raw["model_type"]], frozenset(tensors)
    for name, module in model.named_modules():
        if not (name.startswith("layers.") and name.endswith("_proj")) or not isinstance(module, torch.nn.Linear):
            continue
        for parameter in ("weight", "bias") if module.bias is not None else ("weight",):
            for stored in source(f"{name}.{parameter}", architecture, model.config, there).names:
                tensors.pop(stored, None)  # of a fused tensor another piece may have taken it out
        for piece, tensor in _pieces(module, kept).items():
            tensors[stored_name(f"{name}.{piece}", architecture)] = tensor
    rewrite(checkpoint, target, tensors, raw, f"low rank, {kept:g} of the weights", kept_weights=kept)


def _pieces(module: torch.nn.Linear, kept: float) -> dict[str, Tensor]:
    """The parameters of a `LowRankLinear` that comes as close to `module` as its rank lets it."""
    weight = module.weight.detach()
    left, sizes, right = torch.linalg.svd(weight.double(), full_matrices=False)
    rank = rank_of(kept, weight.shape[1], weight.shape[0])
    root = sizes[:rank].sqrt()
    pieces = {
        "first.weight": (root[:, None] * right[:rank]).to(weight.dtype),
        "second.weight": (left[:, :rank] * root).to(weight.dtype),
    }
    if module.bias is not None:
        pieces["second.bias"] = module.bias.detach()
    return pieces
