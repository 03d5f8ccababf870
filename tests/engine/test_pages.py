"""Pages are free, kept or held as often as requests hold them, whatever happens in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine.pages import PagePool


def test_low_pages_come_first() -> None:
    pool = PagePool(8)
    first, second = pool.take(2), pool.take(2)
    assert (first, second) == ([1, 2], [3, 4])
    pool.drop(first)
    assert pool.take(3) == [1, 2, 5]


def test_trash_page_is_never_handed_out() -> None:
    assert 0 not in PagePool(4).take(4)


def test_more_than_available_is_refused_and_nothing_is_taken() -> None:
    pool = PagePool(2)
    with pytest.raises(ValueError, match="3 pages asked for, 2 available"):
        pool.take(3)
    assert pool.available == 2


def test_what_is_published_is_found_while_held_and_after() -> None:
    pool = PagePool(3)
    pages = pool.take(2)
    pool.publish(pages[0], b"a")
    assert pool.find(b"a") == pages[0]
    assert pool.find(b"b") is None
    pool.drop(pages)
    assert (pool.find(b"a"), pool.kept, pool.used, pool.available) == (pages[0], 1, 0, 3)
    pool.share(pages[0])
    assert (pool.kept, pool.used) == (0, 1)
    pool.share(pages[0])
    pool.drop([pages[0]])
    assert pool.used == 1, "the other holder is still there"
    pool.check_integrity([[pages[0]]])


def test_kept_pages_are_given_up_least_recently_used_first_and_the_end_of_a_text_before_its_beginning() -> None:
    pool = PagePool(5)
    old, new = pool.take(2), pool.take(2)
    for page, key in zip([*old, *new], (b"o1", b"o2", b"n1", b"n2"), strict=True):
        pool.publish(page, key)
    pool.drop(old)
    pool.drop(new)
    pool.share(old[0])
    pool.drop([old[0]])  # used again: now the youngest
    assert pool.take(2) == [5, old[1]]
    assert pool.find(b"o2") is None
    assert pool.take(1) == [new[1]]
    assert pool.find(b"n1") == new[0]
    assert pool.find(b"o1") == old[0]


def test_of_two_pages_with_the_same_content_one_is_found_and_the_other_becomes_free() -> None:
    pool = PagePool(2)
    one, two = pool.take(2)
    pool.publish(one, b"same")
    pool.publish(two, b"same")
    pool.drop([two])
    assert (pool.find(b"same"), pool.kept, pool.available) == (one, 0, 1)


def test_forgetting_leaves_holders_alone() -> None:
    pool = PagePool(3)
    held, kept = pool.take(1), pool.take(1)
    pool.publish(held[0], b"h")
    pool.publish(kept[0], b"k")
    pool.drop(kept)
    pool.forget()
    assert (pool.find(b"h"), pool.find(b"k"), pool.kept, pool.available) == (None, None, 0, 2)
    pool.check_integrity([held])
    pool.drop(held)
    assert pool.available == 3


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 7)), max_size=80))
def test_integrity_under_any_sequence(steps: list[tuple[int, int, int]]) -> None:
    pool = PagePool(9)
    held: dict[int, list[int]] = {}
    for owner, count, name in steps:
        key = bytes([name])
        if owner in held:
            pool.publish(held[owner][0], key)
            pool.drop(held.pop(owner))
        else:
            found = pool.find(key)
            if found is not None:
                pool.share(found)
            pages = [] if found is None else [found]
            if count <= pool.available:
                taken = pool.take(count)
                assert not set(taken) & {page for pages in held.values() for page in pages}
                pages += taken
            if pages:
                held[owner] = pages
        pool.check_integrity(held.values())
        assert pool.used == len({page for pages in held.values() for page in pages})
        assert pool.used + pool.available == 9


def test_integrity_notices_what_is_wrong() -> None:
    pool = PagePool(3)
    pages = pool.take(2)
    with pytest.raises(AssertionError, match="not held by those"):
        pool.check_integrity([pages, pages[:1]])
    pool._free.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity([pages])
    with pytest.raises(ValueError, match="held by nobody"):
        pool.publish(3, b"x")
    with pytest.raises(KeyError):
        pool.drop([3])
