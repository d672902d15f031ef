"""Equal histories are one object, different ones never, and nobody keeps what nobody holds."""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.history import Histories, History


def read(histories: Histories, items: list[int]) -> History | None:
    last = None
    for item in items:
        last = histories.after(last, item)
    return last


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=8))
def test_histories_are_the_same_object_exactly_if_they_are_equal(texts: list[list[int]]) -> None:
    histories = Histories()
    made = [read(histories, text) for text in texts]
    for one, text in zip(made, texts, strict=True):
        for other, again in zip(made, texts, strict=True):
            assert (one is other) == (text == again)


class Colliding(int):
    """A number whose hash tells nothing."""

    def __hash__(self) -> int:
        return 0


def test_equal_hashes_make_no_equal_histories() -> None:
    histories = Histories()
    made = [histories.after(histories.after(None, Colliding(a)), Colliding(b)) for a in range(5) for b in range(5)]
    assert len(set(map(id, made))) == 25


def test_history_is_forgotten_with_its_last_holder() -> None:
    histories = Histories()
    last = read(histories, list(range(5000)))
    assert len(histories) == 5000
    del last
    assert len(histories) == 0
