"""Percentiles and rates by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bench.exchange import Call, Exchange
from service.bench.summary import Percentiles, summarise


def test_percentiles_are_values_that_were_measured() -> None:
    found = Percentiles.of([number / 1000 for number in range(1, 101)])
    assert found == Percentiles(50, 90, 99, 100)
    assert Percentiles.of([]) is None
    assert Percentiles.of([0.007]) == Percentiles(7, 7, 7, 7)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_share_within_a_percentile_is_at_least_its_name(seconds: list[float]) -> None:
    found = Percentiles.of(seconds)
    assert found is not None
    for share, limit in ((0.5, found.p50_ms), (0.9, found.p90_ms), (0.99, found.p99_ms), (1, found.max_ms)):
        assert sum(1000 * one <= limit for one in seconds) >= share * len(seconds) - 1e-9
        assert limit in [1000 * one for one in seconds]


def test_rates_and_counts_add_up() -> None:
    call = Call(b"", "0-2", num_rows=4)
    answered = [
        Exchange(call, due, due, due + 0.5, 200, 8, (due + 0.1, due + 0.2, due + 0.4)) for due in (0.0, 1.0, 1.5)
    ]
    late = Exchange(Call(b""), 1.0, 1.2, 1.3, 503)
    found = summarise([*answered, late])
    assert found.seconds == pytest.approx(2.0)
    assert found.requests_per_s == pytest.approx(1.5)
    assert found.rows_per_s == pytest.approx(6)
    assert found.tokens_per_s == pytest.approx(12)
    assert found.status == {200: 3, 503: 1}
    assert found.num_late == 1
    assert found.chains == {"0-2": 3, "full": 1}
    assert found.first_token is not None
    assert found.first_token.p50_ms == pytest.approx(100)
    assert found.inter_token is not None
    assert (found.inter_token.p50_ms, found.inter_token.max_ms) == (pytest.approx(100), pytest.approx(200))
