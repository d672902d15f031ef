"""Headers that say who asks, how urgently and for how long."""

import math
from typing import Any

import pytest

from models.errors import InputError
from service.callers import read_terms
from service.engine.terms import DEFAULT_PRIORITY, Terms, Told


def terms(max_request_s: float | None = None, address: str | None = "10.0.0.7", **headers: str) -> Terms:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"headers": sent, "client": address and (address, 5000)}
    return read_terms(scope, 100.0, max_request_s, Told())


def test_client_is_its_key_or_its_name_or_its_address() -> None:
    assert terms().client == "address 10.0.0.7"
    assert terms(address=None).client == ""
    assert terms(x_client_id="team-a").client == "id team-a"
    mine, yours = (terms(authorization=f"Bearer {key}", x_client_id="any").client for key in ("mine", "yours"))
    assert mine != yours
    assert "mine" not in mine


def test_time_is_the_least_of_what_is_asked_and_what_is_allowed() -> None:
    assert terms().deadline == math.inf
    assert terms(x_request_timeout="2.5").deadline == 102.5
    assert terms(max_request_s=1.0, x_request_timeout="2.5").deadline == 101.0
    assert terms(max_request_s=5.0, x_request_timeout="2.5").deadline == 102.5
    assert terms(max_request_s=5.0).tightened(1.0, None).deadline == 101.0
    assert terms(max_request_s=5.0).tightened(9.0, None).deadline == 105.0


def test_priority_is_one_to_five_and_zero_is_the_default() -> None:
    assert terms().priority == terms(x_request_priority="0").priority == DEFAULT_PRIORITY == 3
    assert terms(x_request_priority="1").priority == 1
    assert terms(x_request_priority="5").tightened(None, 2).priority == 2
    assert terms(x_request_priority="5").tightened(None, 0).priority == 5


@pytest.mark.parametrize(
    "headers",
    [
        *({"x_request_timeout": sent} for sent in ("", "soon", "-1", "0", "0.0", "nan", "inf", "1e3", "1" * 40, "é")),
        *({"x_request_priority": sent} for sent in ("", "6", "-1", "high", "10")),
    ],
    ids=str,
)
def test_headers_that_cannot_be_read_are_refused_by_name(headers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(headers)).replace("_", "-")):
        terms(**headers)


def test_such_a_header_is_a_problem(server: Any, problem: Any) -> None:
    body = {"model": "tinylm", "inputs": ["1+1="]}
    answer = server.client.post("/predict", json=body, headers={"x-request-timeout": "soon"})
    problem(answer, 422, "x-request-timeout", "'soon'", "seconds")
