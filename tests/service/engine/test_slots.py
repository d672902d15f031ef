"""KV slots are handed out once at a time and come back."""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.slots import Slots


def test_all_or_nothing() -> None:
    slots = Slots(3)
    assert slots.take(4) is None
    assert slots.num_used == 0
    taken = slots.take(3)
    assert taken is not None
    assert sorted(taken) == [0, 1, 2]
    assert slots.take(1) is None
    assert slots.take(0) == ()


@given(st.integers(0, 12), st.lists(st.one_of(st.integers(0, 6), st.none()), max_size=40))
def test_nobody_shares_a_slot_and_all_come_back(num_slots: int, asked: list[int | None]) -> None:
    slots, owned = Slots(num_slots), list[tuple[int, ...]]()
    for count in asked:
        if count is None:
            if owned:
                slots.give_back(owned.pop(0))
        elif (taken := slots.take(count)) is not None:
            assert len(taken) == count
            owned.append(taken)
        else:
            assert count > num_slots - slots.num_used
        held = [slot for taken in owned for slot in taken]
        assert len(set(held)) == len(held) == slots.num_used
        assert set(held) <= set(range(num_slots))
    for taken in owned:
        slots.give_back(taken)
    assert slots.num_used == 0
    everything = slots.take(num_slots)
    assert everything is not None
    assert set(everything) == set(range(num_slots))
