"""Two real ranks whose all-reduces and modules were given a time: forms take what they are predicted to."""

import pytest

from models.errors import BackendError, InputError
from models.lm.config import LMConfig
from models.parallel.latency import FORMS, num_all_reduces
from models.parallel.timing import devices, measure
from models.parallel.trial import Measured, Trial

NUM_LAYERS, WIDTH = 4, 32
CONFIG = LMConfig(64, WIDTH, 64, NUM_LAYERS, 2, 2, 64)
SLOW = 0.024
TRIAL = Trial(
    CONFIG,
    phases=("decode",),
    rows=(3,),
    prompt_tokens=8,
    repeats=8,
    latencies_s=(0.008, SLOW),
    module_s=(0.008, 0.008),
)
Found = dict[tuple[str, float | None], Measured]


@pytest.fixture(scope="module")
def found() -> Found:
    return {(one.form, one.latency_s): one for one in measure(TRIAL)}


def test_ladder_is_much_faster_where_all_reduces_take_as_long_as_modules(found: Found) -> None:
    standard, ladder = found["standard", 0.008], found["ladder", 0.008]
    assert standard.best_s >= 1.4 * ladder.best_s
    assert ladder.best_s < 0.8 * standard.best_s


@pytest.mark.parametrize("latency_s", TRIAL.latencies_s)
@pytest.mark.parametrize("name", FORMS)
def test_form_takes_what_is_predicted(found: Found, name: str, latency_s: float) -> None:
    one = found[name, latency_s]
    assert abs(one.error) < 0.1
    assert one.best_s <= one.median_s


def test_costs_are_those_that_were_given(found: Found) -> None:
    for (_, latency_s), one in found.items():
        assert latency_s is not None
        assert one.costs.all_reduce_s == pytest.approx(latency_s, rel=0.2)
        for module_s in (one.costs.attention_s, one.costs.mlp_s):
            assert 0.008 <= module_s < 0.011
        assert 0 <= one.costs.overhead_s < 0.001
        assert one.costs.rest_s >= latency_s, "the embedding's all-reduce"


@pytest.mark.parametrize("latency_s", TRIAL.latencies_s)
def test_fewer_all_reduces_are_faster(found: Found, latency_s: float) -> None:
    names = ("upper-bound", "desync-4x", "desync-2x", "standard")
    times = [found[name, latency_s].best_s for name in names]
    assert times == sorted(times)
    assert found["upper-bound", latency_s].best_s == min(found[name, latency_s].best_s for name in FORMS)


def test_parallel_blocks_win_once_an_all_reduce_takes_longer_than_a_layer(found: Found) -> None:
    assert found["ladder", 0.008].best_s < found["parallel", 0.008].best_s
    assert found["parallel", SLOW].best_s < found["ladder", SLOW].best_s


def test_waits_hide_in_a_ladder_alone(found: Found) -> None:
    standard, ladder = (found[name, 0.008].exposed_s for name in ("standard", "ladder"))
    assert standard is not None
    assert ladder is not None
    assert standard > 0.9 * 2 * NUM_LAYERS * 0.008
    assert 0.007 < ladder < standard / 3


@pytest.mark.parametrize("name", FORMS)
def test_all_reduces_and_bytes_are_counted(found: Found, name: str) -> None:
    one = found[name, 0.008]
    assert one.num_all_reduces == num_all_reduces(FORMS[name], NUM_LAYERS)
    assert one.num_bytes == one.num_all_reduces * 3 * WIDTH * 4


def test_rank_that_fails_is_told() -> None:
    too_many = Trial(CONFIG, num_ranks=3, forms=("standard",), rows=(1,), prompt_tokens=8, repeats=1)
    with pytest.raises(BackendError, match="a rank failed"):
        list(measure(too_many))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_ranks": 0}, "0 ranks"),
        ({"forms": ("standard", "spiral")}, "'spiral'"),
        ({"forms": ()}, "no name"),
        ({"rows": (1, 0)}, "rows are"),
        ({"repeats": 0}, "repeats"),
        ({"latencies_s": (11.0,)}, "11000"),
        ({"module_s": (0.1, -0.1)}, "-100"),
        ({"prompt_tokens": 64}, "do not fit"),
        ({"device": "cuda", "latencies_s": (0.001,)}, "ranks on CPUs"),
    ],
)
def test_trial_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trial(CONFIG, **{"prompt_tokens": 8, **fields})  # type: ignore[arg-type]


def test_ranks_run_on_what_there_is() -> None:
    assert devices("cpu") == ("cpu", 2)
    with pytest.raises(InputError, match="'tpu'"):
        devices("tpu")
