"""Tables share what they may, write only what they own, and never hold what they could not get."""

from models.chain import Chain
from service.engine.pools import Pools
from service.engine.tables import Tables

TEXT = tuple(range(10))
FULL, OTHER = Chain((0, 1, 2)), Chain((0, 1, 3))


def published(tables: Tables, chain: Chain = FULL) -> None:
    """Pages of TEXT along a chain, held by nobody."""
    table = tables.open(TEXT, chain, len(TEXT))
    assert table
    tables.publish(table, TEXT, len(TEXT))
    tables.close(table)


def test_found_pages_may_be_read_and_not_written() -> None:
    tables = Tables(Pools(20), page_size=4)
    published(tables)
    table = tables.open(TEXT, OTHER, 16)
    assert table
    assert table.num_shared.tolist() == [2, 2, 0]
    assert (table.num_found, table.num_columns) == (0, 3)
    first = table.writable(0, 3)  # a pass from the first token on
    assert (first[:2, :2] == -1).all()
    assert (first[:2, 2] >= 0).all()
    assert (first[2] >= 0).all()
    behind = table.writable(1, 3)  # a pass from the second column on reads the first
    assert behind[:2, 0].tolist() == table.pages[:2, 0].tolist()
    assert (behind[:2, 1] == -1).all()
    assert table.writable(2, 3).tolist() == table.pages[:, :3].tolist()


def test_page_of_the_last_token_is_never_shared() -> None:
    tables = Tables(Pools(20), page_size=5)
    published(tables)
    table = tables.open(TEXT, FULL, 16)
    assert table
    assert table.num_found == 1


def test_nothing_is_held_of_what_does_not_fit() -> None:
    tables = Tables(Pools(9), page_size=4)
    published(tables)
    assert tables.open((*TEXT, 10, 11, 12), FULL, 16) is None  # 6 found, 6 more
    assert tables.open(TEXT, FULL, 16, running=[Chain((0,))]) is None
    assert tables.pages.num_used == 0
    table = tables.open(TEXT, FULL, 16)
    assert table
    assert tables.pages.num_used == 9
    assert not tables.grow(table, 13)
    assert tables.grow(table, 12)
    tables.close(table)
    assert tables.pages.num_used == 0


def test_growing_takes_a_page_of_every_visit() -> None:
    tables = Tables(Pools(9), page_size=4)
    table = tables.open((1,), FULL, 9)
    assert table
    assert tables.grow(table, 4)
    assert tables.pages.num_used == 3
    assert tables.grow(table, 5)
    assert tables.pages.num_used == 6
    held = table.pages[table.pages >= 0].tolist()
    assert len(set(held)) == len(held) == 6


def test_beginning_outlives_the_end_of_a_text() -> None:
    tables = Tables(Pools(6), page_size=4)
    published(tables, Chain((0,)))
    assert tables.pages.num_cached == 2
    other = tables.open(tuple(range(20, 37)), Chain((1,)), 17)  # takes 5 of 6 pages
    assert other
    again = tables.open(TEXT[:5], Chain((0,)), 5)
    assert again is None  # one page is left, the beginning, and a second would be needed
    tables.close(other)
    again = tables.open(TEXT[:5], Chain((0,)), 5)
    assert again
    assert again.num_found == 1


def test_table_with_fewer_columns_than_its_batch_says_what_it_has() -> None:
    tables = Tables(Pools(20), page_size=4)
    published(tables)
    table = tables.open(TEXT, OTHER, len(TEXT))
    assert table
    assert table.writable(0, 5).tolist() == table.writable(0, 3).tolist()
