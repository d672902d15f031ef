"""Every page has as many holders as it was given, or none; what was published is found until its room is needed."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.engine.pages import Pages


def test_page_is_free_used_or_cached() -> None:
    pages = Pages(3)
    assert pages.take(4) is None
    taken = pages.take(2)
    assert taken is not None
    assert (pages.num_used, pages.num_cached, pages.num_available) == (2, 0, 1)
    assert pages.publish(taken[0], "a") == taken[0]
    pages.give_back(taken)
    assert (pages.num_used, pages.num_cached, pages.num_available) == (0, 1, 3)


def test_published_page_is_found_while_held_and_afterwards() -> None:
    pages = Pages(2)
    (page,) = pages.take(1) or ()
    pages.publish(page, "a")
    assert pages.find("a") == page
    pages.give_back([page])
    assert pages.num_used == 1
    pages.give_back([page])
    assert pages.num_used == 0
    assert pages.find("a") == page
    assert pages.find("b") is None


def test_page_whose_content_is_known_already_is_given_back() -> None:
    pages = Pages(2)
    first, second = pages.take(2) or ()
    assert pages.publish(first, "a") == first
    assert pages.publish(second, "a") == first
    assert pages.num_used == 1
    pages.give_back([first, first])
    assert (pages.num_used, pages.num_cached) == (0, 1)


def test_least_recently_used_page_goes_first_and_held_ones_stay() -> None:
    pages = Pages(3)
    taken = pages.take(3) or []
    for page, key in zip(taken, "abc", strict=True):
        pages.publish(page, key)
    pages.give_back(taken)
    assert pages.find("a") == taken[0]
    assert pages.take(1) == [taken[1]]
    assert pages.find("b") is None
    assert pages.take(1) == [taken[2]]
    assert pages.take(1) is None
    pages.give_back([taken[0]])
    assert pages.find("a") == taken[0]


moves = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 4)),
        st.tuples(st.just("publish"), st.tuples(st.integers(0, 9), st.integers(0, 3))),
        st.tuples(st.just("find"), st.integers(0, 3)),
        st.tuples(st.just("give_back"), st.integers(0, 9)),
    ),
    max_size=40,
)


@given(st.integers(0, 6), moves)
def test_pages_behave_like_a_list_of_holders(num_pages: int, made: list[tuple[str, object]]) -> None:
    pages, held = Pages(num_pages), list[int]()
    written = dict[int, object]()  # what a page would hold: unique until published under a key
    for number, (name, value) in enumerate(made):
        if name == "take":
            taken = pages.take(value)  # type: ignore[arg-type]
            assert (taken is None) == (value > num_pages - len(set(held)))  # type: ignore[operator]
            assert not set(taken or ()) & set(held)
            held.extend(taken or ())
            written.update({page: number for page in taken or ()})
        elif name == "publish" and held:
            place, key = value  # type: ignore[misc]
            page = held[place % len(held)]
            if isinstance(written[page], int) and Counter(held)[page] == 1:
                held.remove(page)
                held.append(pages.publish(page, f"key {key}"))
                written[held[-1]] = f"key {key}"
        elif name == "find":
            found = pages.find(f"key {value}")
            if found is not None:
                assert written[found] == f"key {value}"
                held.append(found)
        elif name == "give_back" and held:
            pages.give_back([held.pop(value % len(held))])  # type: ignore[operator]
        assert pages.num_used == len(set(held))
    pages.give_back(held)
    assert pages.num_used == 0
    assert sorted(pages.take(num_pages) or []) == list(range(num_pages))
