"""What verification lets through and what it does not, with a classifier whose outputs are tampered with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporters.parts import Parts, Run, Runs, Tensors
from exporters.split import split
from exporters.verify import verify
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError


@pytest.fixture(scope="module")
def parts(mlp_checkpoint: Path) -> Parts:
    return split(load_checkpoint(mlp_checkpoint))


def eager(parts: Parts) -> Runs:
    return Runs(parts.embed, parts.layers, parts.head, parts.whole)


def tampered(run: Run, change: Callable[[Tensor], Tensor]) -> Run:
    def call(*inputs: Tensor) -> Tensors:
        return tuple(change(output) for output in run(*inputs))

    return call


def test_equal_outputs_pass_with_the_difference_that_was_measured(parts: Parts) -> None:
    runs = replace(eager(parts), head=tampered(parts.head, lambda logits: logits + 2e-5))
    measured = verify(runs, parts)
    assert [(d.batch, d.length) for d in measured] == [(1, 1), (3, 1)]
    assert all(1e-5 < d.max_abs < 3e-5 for d in measured)


def test_form_without_a_whole_graph_passes(parts: Parts) -> None:
    assert verify(replace(eager(parts), whole=None), parts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits + 2e-4, "differs from eager torch by 0.0002"),
        (lambda logits: logits * torch.nan, "differs from eager torch by nan"),
        (lambda logits: logits.double(), "torch.float64"),
        (lambda logits: logits[:1].expand(3, -1), "gives"),
    ],
)
@pytest.mark.parametrize("part", ["head", "whole"])
def test_wrong_outputs_fail_by_part_and_reason(
    parts: Parts, part: str, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    runs = replace(eager(parts), **{part: tampered(getattr(parts, part), change)})  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=f"{part} at batch 1, length 1 .*{reason}"):
        verify(runs, parts)


def test_wrong_layer_is_named(parts: Parts) -> None:
    first, second, third = parts.layers
    runs = replace(eager(parts), layers=(first, tampered(second, lambda hidden: hidden * 1.01), third))
    with pytest.raises(ArtifactError, match="layer_001 at batch 1"):
        verify(runs, parts)


def test_layer_that_cannot_run_a_size_is_named(parts: Parts) -> None:
    def fails(hidden: Tensor) -> Tensors:
        if len(hidden) == 3:
            raise RuntimeError("shape mismatch")
        return parts.layers[2](hidden)

    runs = replace(eager(parts), layers=(*parts.layers[:2], fails))
    with pytest.raises(ArtifactError, match="layer_002 does not run at batch 3, length 1: shape mismatch"):
        verify(runs, parts)
