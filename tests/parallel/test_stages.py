"""Stages have every layer, page and parameter once, as even as they go; what cannot be dealt out is refused."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BackendError
from models.parallel.stages import NO_LAYER, Stages, deal

sizes = st.integers(1, 40).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers)))


@given(sizes, st.integers(0, 500))
def test_everything_is_on_one_stage(size: tuple[int, int], num_pages: int) -> None:
    num_layers, count = size
    stages = deal(num_layers, count)
    runs = [stages.layers(stage) for stage in range(count)]
    assert list(chain(*runs)) == list(range(num_layers))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert all(layer in runs[stages.of(layer)] for layer in range(num_layers))
    assert stages.of(NO_LAYER) == 0
    assert list(chain(*stages.pages(num_pages))) == list(range(num_pages))


@given(sizes, st.integers(1, 9), st.integers(0, 50))
def test_pages_for_the_full_chain_are_enough_on_every_stage(size: tuple[int, int], columns: int, more: int) -> None:
    num_layers, count = size
    stages = deal(num_layers, count)
    for stage, pages in enumerate(stages.pages(num_layers * columns + more)):
        assert len(pages) >= columns * len(stages.layers(stage))


@pytest.mark.parametrize("is_tied", [False, True])
def test_each_parameter_is_on_one_stage(is_tied: bool) -> None:
    stages = deal(11, 3)
    names = ["embed.embed_tokens.weight", "head.norm.weight", *(f"layers.{n}.mlp.up_proj.weight" for n in range(11))]
    parts = [stages.part(stage, is_tied) for stage in range(3)]
    assert all(sum(part.has(name) for part in parts) == 1 for name in names)
    assert [part.has_head for part in parts] == ([True, False, False] if is_tied else [False, False, True])


def test_stages_may_be_given() -> None:
    stages = deal(12, 3, (2, 6, 4))
    assert stages == Stages((0, 2, 8, 12))
    assert stages.told(2, is_tied=False) == (
        "ranks 0 to 1: layers 0 to 1 with the embedding, ranks 2 to 3: layers 2 to 7, "
        "ranks 4 to 5: layers 8 to 11 with the head"
    )
    assert deal(2, 2).told(1, is_tied=True) == "rank 0: layer 0 with the embedding and the head, rank 1: layer 1"


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (4, (), "4 stages of a pipeline and the model has 3 layers; use at most 3"),
        (2, (1, 1), r"\[1, 1\] are given .* the model has 3 and there are 2 stages: give 2 numbers"),
        (2, (3,), r"\[3\] are given .* give 2 numbers from 1 on that add up to 3"),
        (2, (3, 0), r"\[3, 0\] are given .* give 2 numbers from 1 on"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(count: int, given: tuple[int, ...], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        deal(3, count, given)
