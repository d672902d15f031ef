"""A growing answer is told without what may yet be taken back."""

import pytest

from service.engine.spoken import Spoken, settled


@pytest.mark.parametrize(
    ("text", "stops", "length"),
    [
        ("", ["a"], 0),
        ("abc", [], 3),
        ("abc", ["d"], 3),
        ("abc", ["cd"], 2),
        ("abab", ["abac"], 2),
        ("abc", ["bc", "c"], 1),
        ("abca", ["bc"], 1),
        ("aa", ["aaa"], 0),
        ("ab\ufffd", [], 2),
        ("ab\ufffd", ["bc"], 2),
    ],
)
def test_text_is_settled_up_to_what_may_become_a_stop_text(text: str, stops: list[str], length: int) -> None:
    assert settled(text, stops) == length


def test_pieces_are_the_answer_up_to_its_stop_text_and_no_half_character_is_told() -> None:
    tokens = ["a", "b", "é".encode()[:1], "é".encode()[1:], "<", "x", "<", "en", "d>", "c"]

    def decode(token_ids: object) -> str:
        raw = (tokens[i] for i in token_ids)  # type: ignore[attr-defined]
        return b"".join(one.encode() if isinstance(one, str) else one for one in raw).decode(errors="replace")

    spoken = Spoken(decode, ["<end>"])
    assert [spoken.add(i) for i in range(len(tokens))] == ["a", "b", "", "é", "", "<x", "", "", "", ""]
