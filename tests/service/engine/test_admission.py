"""Who joins adds the fewest layer calls, and nobody waits for ever."""

from dataclasses import dataclass
from itertools import combinations
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from models.chain import Chain
from service.engine.admission import Admission, growth
from service.engine.plan import plan

chains = st.lists(st.integers(0, 3), max_size=6).map(lambda layers: Chain(tuple(layers)))


@dataclass(eq=False)
class Waiter:
    chain: Chain
    num_overtaken: int = 0


def is_within(layers: tuple[int, ...], calls: tuple[int, ...]) -> bool:
    left = iter(calls)
    return all(layer in left for layer in layers)


@given(chains, st.lists(st.integers(0, 3), max_size=8).map(tuple))
def test_growth_is_the_calls_that_are_missing(chain: Chain, calls: tuple[int, ...]) -> None:
    longest = max(
        count for count in range(len(chain) + 1) for kept in combinations(chain.layers, count) if is_within(kept, calls)
    )
    assert growth(chain, calls) == len(chain) - longest


def test_chain_of_the_batch_joins_before_a_stranger() -> None:
    stranger, friend = Waiter(Chain((3, 2, 1, 0))), Waiter(Chain((0, 2, 3)))
    assert Admission().choose([stranger, friend], [0, 1, 2, 3]) is friend
    assert Admission().choose([stranger, friend], []) is friend  # shorter
    assert Admission().choose([stranger, Waiter(stranger.chain)], [0, 1, 2, 3]) is stranger  # first of equals
    assert Admission().choose([], [0]) is None


def test_only_the_first_few_are_looked_at() -> None:
    line = [Waiter(Chain((3, 2))), Waiter(Chain((3, 2))), Waiter(Chain((0,)))]
    assert Admission(window=2).choose(line, [0]) is line[0]
    assert Admission(window=3).choose(line, [0]) is line[2]


@given(
    st.integers(1, 5),
    st.integers(0, 4),
    st.lists(st.lists(chains, max_size=3), min_size=1, max_size=30),
    st.randoms(),
)
def test_nobody_is_overtaken_too_often(
    window: int, max_overtaken: int, arrivals: list[list[Chain]], random: Random
) -> None:
    admission, line, passed = Admission(window, max_overtaken), list[Waiter](), dict[Waiter, int]()
    running: list[Chain] = []
    for arrived in [*arrivals, *([] for _ in range(100))]:
        line += map(Waiter, arrived)
        calls = [group.layer for group in plan(tuple(running))]
        chosen = admission.choose(line, calls)
        if chosen is None:
            continue
        admission.admitted(chosen, line)
        for one in line[: line.index(chosen)]:
            passed[one] = passed.get(one, 0) + 1
            assert passed[one] <= max_overtaken
        line.remove(chosen)
        running = [*running, chosen.chain][-3:]
    assert not line


def test_affinity_saves_layer_calls() -> None:
    """Sequences of two kinds arrive mixed: batches of one kind need half the calls of mixed ones."""
    random = Random(0)
    kinds = (Chain((0, 1, 2, 3)), Chain((3, 2, 1, 0)))
    line = [Waiter(random.choice(kinds)) for _ in range(64)]
    admission, running, calls = Admission(), list[Chain](), 0
    while line:
        planned = [group.layer for group in plan(tuple(running))]
        chosen = admission.choose(line, planned)
        assert chosen is not None
        admission.admitted(chosen, line)
        line.remove(chosen)
        running.append(chosen.chain)
        if len(running) == 4 or not line:
            calls += len(plan(tuple(running)))
            running = []
    assert calls <= 16 * 5
