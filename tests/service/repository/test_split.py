"""The division of requests between versions: exact, even, and the same every time."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.repository.split import Split

WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 12), min_size=1).filter(lambda one: any(one.values()))


@given(WEIGHTS)
def test_every_round_holds_each_version_by_its_weight(weights: dict[str, int]) -> None:
    split = Split(weights)
    for _ in range(2):
        taken = Counter(split.next(weights) for _ in range(sum(weights.values())))
        assert taken == Counter({version: weight for version, weight in weights.items() if weight})


def test_turns_are_spread_evenly() -> None:
    split = Split({"stable": 4, "canary": 1})
    assert "".join(str(split.next({"stable", "canary"}))[0] for _ in range(10)) == "sscsssscss"
    split = Split({"a": 5, "b": 1, "c": 1})
    assert "".join(str(split.next("abc")) for _ in range(14)) == "aabacaa" * 2


def test_who_cannot_answer_is_left_out() -> None:
    split = Split({"a": 3, "b": 1})
    assert {split.next("b") for _ in range(5)} == {"b"}
    assert split.next("z") is None
    assert Counter(split.next("ab") for _ in range(400))["b"] == 100


def test_looking_takes_no_turn() -> None:
    split = Split({"a": 3, "b": 1, "c": 0})
    assert [split.heaviest("ab"), split.heaviest("bc"), split.heaviest("c")] == ["a", "b", None]
    assert "".join(str(split.next("ab")) for _ in range(4)) == "aaba"
