"""Two real ranks whose all-reduces and modules were given a time: forms take what they are predicted to."""

from dataclasses import astuple, replace

import pytest

from models.errors import BackendError, FathomError, InputError
from models.lm.config import LMConfig
from models.parallel.latency import FORMS, Costs, num_all_reduces, predicted
from models.parallel.timing import devices, measure
from models.parallel.trial import Measured, Trial

NUM_LAYERS, WIDTH = 3, 32
CONFIG = LMConfig(64, WIDTH, 64, NUM_LAYERS, 2, 2, 64)
MODULE = 0.008
# As long as a module, and longer than a layer.
EVEN, LONG = 0.008, 0.020
TRIAL = Trial(
    CONFIG,
    phases=("decode",),
    rows=(3,),
    prompt_tokens=8,
    repeats=15,
    latencies_s=(EVEN,),
    module_s=(MODULE, MODULE),
)
MOST_ROUNDS = 5
Found = dict[str, Measured]


@pytest.fixture(scope="module")
def even() -> Found:
    """The best of several rounds; on a quiet machine of one."""
    found: Found = {}
    for _ in range(MOST_ROUNDS):
        found = {one.form: better(one, found.get(one.form, one)) for one in measure(TRIAL)}
        if all(abs(one.error) < 0.1 for one in found.values()):
            break
    return found


def better(one: Measured, other: Measured) -> Measured:
    """The faster pass, predicted from the faster parts."""
    costs = Costs(*(min(pair) for pair in zip(astuple(one.costs), astuple(other.costs), strict=True)))
    predicted_s = predicted(TRIAL.residual(one.form), range(NUM_LAYERS), costs)
    return replace(min(one, other, key=lambda found: found.best_s), costs=costs, predicted_s=predicted_s)


@pytest.fixture(scope="module")
def long() -> Found:
    trial = replace(TRIAL, forms=("standard", "parallel", "ladder"), latencies_s=(LONG,), repeats=8)
    return {one.form: one for one in measure(trial)}


def test_ladder_is_much_faster_where_all_reduces_take_as_long_as_modules(even: Found) -> None:
    standard, ladder = even["standard"].best_s, even["ladder"].best_s
    assert standard >= 1.4 * ladder
    assert ladder < 0.8 * standard


@pytest.mark.parametrize("name", FORMS)
def test_form_takes_what_is_predicted(even: Found, name: str) -> None:
    one = even[name]
    assert abs(one.error) < 0.1
    assert one.best_s <= one.median_s


def test_costs_are_those_that_were_given(even: Found) -> None:
    costs = even["ladder"].costs
    assert EVEN <= costs.all_reduce_s < 1.2 * EVEN
    for module_s in (costs.attention_s, costs.mlp_s):
        assert MODULE <= module_s < 1.2 * MODULE
    assert 0 <= costs.overhead_s < 0.001
    assert EVEN <= costs.rest_s < 2 * EVEN, "the embedding's all-reduce, and little else"


def test_fewer_all_reduces_are_faster(even: Found) -> None:
    times = [even[name].best_s for name in ("desync-4x", "desync-2x", "standard")]
    assert times == sorted(times)
    assert even["upper-bound"].best_s == min(one.best_s for one in even.values())


def test_parallel_blocks_win_once_an_all_reduce_takes_longer_than_a_layer(even: Found, long: Found) -> None:
    assert even["ladder"].best_s < even["parallel"].best_s
    assert long["parallel"].best_s < long["ladder"].best_s < long["standard"].best_s


def test_waits_hide_in_a_ladder_alone(even: Found) -> None:
    standard, ladder = (even[name].exposed_s for name in ("standard", "ladder"))
    assert standard is not None
    assert ladder is not None
    # what a busy machine takes for the launch is not waited for any more
    assert standard > 0.7 * 2 * NUM_LAYERS * EVEN
    assert 0.7 * EVEN < ladder < 0.6 * standard


@pytest.mark.parametrize("name", FORMS)
def test_all_reduces_and_bytes_are_counted(even: Found, name: str) -> None:
    one = even[name]
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
        ({"forms": ()}, "no form"),
        ({"forms": ("desync-2x@4",)}, "desync-2x@4"),
        ({"forms": ("ladder:7",)}, "7"),
        ({"rows": (1, 0)}, "rows are"),
        ({"repeats": 0}, "repeats"),
        ({"latencies_s": (11.0,)}, "11000"),
        ({"module_s": (0.1, -0.1)}, "-100"),
        ({"prompt_tokens": 64}, "do not fit"),
        ({"device": "cuda", "latencies_s": (0.001,)}, "ranks on CPUs"),
    ],
)
def test_trial_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(FathomError, match=message):
        Trial(CONFIG, **{"prompt_tokens": 8, **fields})  # type: ignore[arg-type]


def test_ranks_run_on_what_there_is() -> None:
    assert devices("cpu") == ("cpu", 2)
    with pytest.raises(InputError, match="'tpu'"):
        devices("tpu")
