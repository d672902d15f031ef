"""Rows of a stream are picked, put back and joined without reading what is on its way; then they are what they were."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.parallel.stream import Output, Stream, join

WIDTH = 3


@dataclass
class Pending:
    """A handle before whose wait its tensor holds NaN."""

    tensor: Tensor
    result: Tensor
    num_waits: int = field(default=0)

    def wait(self) -> None:
        self.tensor.copy_(self.result)
        self.num_waits += 1


def adding(added: Tensor, module: Any = "mlp", layer: int = 0) -> Output:
    tensor = torch.full_like(added, torch.nan)
    return Output(tensor, Pending(tensor, added), nn.Identity(), module, layer)


def numbers(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 2, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(data=st.data())
def test_any_order_of_picking_putting_and_joining_is_that_of_plain_tensors(data: st.DataObject) -> None:
    """A stream beside the tensor that it stands for; outputs land only at the end, or where a step says so."""
    count = data.draw(st.integers(1, 5))
    plain = numbers(count, 0)
    stream = Stream(plain.clone())
    for step in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["add", "visit", "join", "land"]))
        rows = np.asarray(data.draw(st.lists(st.integers(0, len(plain) - 1), min_size=1, unique=True)))
        added = numbers(len(plain), step + 1)
        if kind == "add":
            stream, plain = stream.launched(adding(added)), plain + added
        elif kind == "visit":  # as the executor does: some rows go through a layer, and come back
            part = stream[rows].land().launched(adding(added[: len(rows)], "attention"))
            stream[rows] = part.launched(adding(added[: len(rows)]))
            plain[rows] = plain[rows] + added[: len(rows)] + added[: len(rows)]
        elif kind == "join":
            stream, plain = join([stream[rows], stream[rows[:1]]]), torch.cat((plain[rows], plain[rows[:1]]))
        else:
            stream = stream.land(lambda output: output.module == "attention")
    assert torch.allclose(stream.land().landed, plain, atol=1e-12)


def test_slices_are_runs_of_rows() -> None:
    stream, added = Stream(numbers(4, 0)).launched(adding(numbers(4, 1))), numbers(4, 0) + numbers(4, 1)
    assert torch.equal(stream[1:3].land().landed, added[1:3])
    stream[1:3] = Stream(numbers(2, 2))
    assert torch.equal(stream.land().landed[[0, 3]], added[[0, 3]])
    assert torch.equal(stream.land().landed[1:3], numbers(2, 2))


def test_picking_waits_for_nothing() -> None:
    output = adding(numbers(4, 1))
    stream = Stream(numbers(4, 0)).launched(output)
    part = join([stream[np.asarray([2])], stream[1:]])
    part[np.asarray([0])] = Stream(numbers(1, 2))
    assert isinstance(output.handle, Pending)
    assert output.handle.num_waits == 0
    assert part.nbytes == stream[0:4].nbytes - stream[0:1].nbytes // 2  # one row of four has nothing on its way


def test_tokens_are_picked_of_each_row() -> None:
    stream, tokens = Stream(numbers(3, 0)).launched(adding(numbers(3, 1))), np.asarray([[1], [0], [1]])
    picked = stream[np.arange(3)[:, None], tokens]
    assert torch.equal(
        picked.landed, (numbers(3, 0) + numbers(3, 1))[torch.arange(3)[:, None], torch.as_tensor(tokens)]
    )


def test_an_output_of_several_streams_lands_as_one() -> None:
    stream = Stream(numbers(4, 0)).launched(adding(numbers(4, 1)))
    singles = [stream[np.asarray([row])] for row in (3, 1)]
    together = join(singles)
    assert len(together.pieces) == 1
    assert together.nbytes == sum(one.nbytes for one in singles)
    assert torch.equal(together.land().landed, (numbers(4, 0) + numbers(4, 1))[[3, 1]])
