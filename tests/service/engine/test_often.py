"""Chains that are asked for often get a graph, beside the passes and without ever holding one up."""

import threading
from collections.abc import Mapping

import pytest

from models.chain import Chain
from models.errors import BackendError
from service.backends.fused import FusedChains
from service.backends.protocol import Array, Graph
from service.engine.often import OftenAsked

SKIP, LOOP = Chain((0, 2)), Chain((0, 1, 1, 2))


class Fuses(FusedChains[Graph]):
    """Those whose graphs are made when they are let, and may be refused."""

    def __init__(self, is_refused: bool = False) -> None:
        self.begun, self.let, self.asked, self._is_refused = threading.Event(), threading.Event(), 0, is_refused
        self._made: dict[tuple[int, ...], Graph] = {}

    def add(self, layers: tuple[int, ...]) -> None:
        self.asked += 1
        self.begun.set()
        assert self.let.wait(10)
        if self._is_refused:
            raise BackendError("no such graph")
        self._made[layers] = self._run

    def get(self, layers: tuple[int, ...]) -> Graph | None:
        return self._made.get(layers)

    def _run(self, inputs: Mapping[str, Array], *states: object) -> dict[str, Array]:
        return dict(inputs)


def test_hundred_passes_earn_a_graph_and_no_pass_waits_for_it() -> None:
    fuses = Fuses()
    often = OftenAsked(fuses)
    for _ in range(99):
        assert often.graph((SKIP,) * 8) is None
    assert fuses.asked == 0
    assert often.graph((SKIP,) * 8) is None
    assert fuses.begun.wait(10)
    for _ in range(200):
        assert often.graph((SKIP,) * 8) is None
    fuses.let.set()
    often.close()
    assert often.graph((SKIP,) * 8) is not None
    assert often.graph((SKIP, LOOP)) is None
    assert fuses.asked == 1


def test_rows_of_several_chains_are_nobodys_graph() -> None:
    fuses = Fuses()
    fuses.let.set()
    often = OftenAsked(fuses)
    for _ in range(300):
        assert often.graph((SKIP, LOOP)) is None
    often.close()
    assert fuses.asked == 0


def test_chain_that_is_refused_stays_layer_by_layer(caplog: pytest.LogCaptureFixture) -> None:
    fuses = Fuses(is_refused=True)
    fuses.let.set()
    often = OftenAsked(fuses)
    for _ in range(100):
        assert often.graph((SKIP,)) is None
    assert fuses.begun.wait(10)
    for _ in range(1000):
        assert often.graph((SKIP,)) is None
    often.close()
    assert fuses.asked == 1
    assert "chain 0,2 stays layer by layer" in caplog.text


def test_chains_that_are_asked_for_seldom_are_forgotten() -> None:
    fuses = Fuses()
    often = OftenAsked(fuses)
    for _ in range(150):
        for n in range(1025):
            often.graph((Chain((n,)),))
    often.close()
    assert fuses.asked == 0


def test_closing_waits_for_the_graph_that_is_being_made_and_drops_the_others() -> None:
    fuses = Fuses()
    often = OftenAsked(fuses)
    for chain in (SKIP, LOOP):
        for _ in range(100):
            often.graph((chain,))
    assert fuses.begun.wait(10)
    threading.Timer(0.05, fuses.let.set).start()
    often.close()
    assert fuses.get(SKIP.layers) is not None
    assert fuses.get(LOOP.layers) is None


def test_graph_that_was_not_run_for_longest_makes_room() -> None:
    made: list[tuple[int, ...]] = []

    def make(layers: tuple[int, ...]) -> str:
        made.append(layers)
        return str(layers)

    fused = FusedChains(make, most=2)
    for layers in ((0,), (1,)):
        fused.add(layers)
    assert fused.get((0,)) == "(0,)"
    fused.add((2,))
    assert [fused.get(layers) for layers in ((0,), (1,), (2,))] == ["(0,)", None, "(2,)"]
    assert made == [(0,), (1,), (2,)]
