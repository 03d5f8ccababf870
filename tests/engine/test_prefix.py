"""A page's key stands for everything before its end, and for who may have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine.config import PAGE
from redraft.server.engine.prefix import PageKeys

TEXT = list(range(1000, 1000 + 3 * PAGE))


def keys(text: list[int], pages: int, version: str = "", salt: str = "") -> list[bytes]:
    return list(PageKeys(version, salt).upto(text, pages))


def test_the_same_beginning_has_the_same_keys_however_it_was_read() -> None:
    once = keys(TEXT, 3)
    growing = PageKeys("", "")
    assert [*growing.upto(TEXT[: PAGE + 5], 1)] == once[:1]
    assert [*growing.upto(TEXT, 3)] == once
    assert len(set(once)) == 3


@given(st.integers(0, 3 * PAGE - 1))
def test_a_changed_token_changes_its_page_and_all_behind_it(place: int) -> None:
    other = [*TEXT[:place], 7, *TEXT[place + 1 :]]
    same = [a == b for a, b in zip(keys(TEXT, 3), keys(other, 3), strict=True)]
    assert same == [place >= (page + 1) * PAGE for page in range(3)]


def test_salt_and_version_keep_pages_apart() -> None:
    found = {tuple(keys(TEXT, 1, version, salt)) for version, salt in [("", ""), ("a", ""), ("", "a"), ("a", "b")]}
    assert len(found) == 4
    assert keys(TEXT, 1, "1", "2") != keys(TEXT, 1, "12", ""), "what is whose is not a matter of where one ends"


def test_a_page_that_is_not_full_has_no_key() -> None:
    with pytest.raises(ValueError, match="not full"):
        keys(TEXT[: PAGE - 1], 1)
