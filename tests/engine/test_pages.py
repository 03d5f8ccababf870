"""Pages are free or held exactly once, whatever happens in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine.pages import PagePool


def test_consecutive_pages_are_preferred() -> None:
    pool = PagePool(8)
    pool.allocate("a", 2)
    pool.allocate("b", 2)
    pool.release("a")
    assert pool.allocate("c", 3) == (5, 6, 7)
    assert pool.allocate("d", 3) == (1, 2, 8)


def test_trash_page_is_never_handed_out() -> None:
    assert 0 not in PagePool(4).allocate("a", 4)


def test_more_than_free_is_refused_and_nothing_is_taken() -> None:
    pool = PagePool(2)
    with pytest.raises(ValueError, match="3 pages asked for, 2 free"):
        pool.allocate("a", 3)
    assert pool.free == 2


def test_second_allocation_of_one_owner_is_refused() -> None:
    pool = PagePool(2)
    pool.allocate("a", 1)
    with pytest.raises(ValueError, match="already holds"):
        pool.allocate("a", 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=60))
def test_integrity_under_any_sequence(steps: list[tuple[int, int]]) -> None:
    pool = PagePool(9)
    held: dict[str, tuple[int, ...]] = {}
    for number, count in steps:
        owner = f"r{number}"
        if owner in held:
            pool.release(owner)
            del held[owner]
        elif count <= pool.free:
            held[owner] = pool.allocate(owner, count)
        pool.check_integrity()
        assert pool.used == sum(len(pages) for pages in held.values())


def test_integrity_notices_a_lost_page() -> None:
    pool = PagePool(3)
    pool._free.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity()
