"""The text ends before the first stop string, whatever the pieces it comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.server.detokenize import Detokenizer
from redraft.server.stops import StopStrings


def stream(pieces, stops, shown=False):
    """What is emitted after each piece, then at the end."""
    watch = StopStrings(stops, shown=shown)
    return [*(watch.push(piece) for piece in pieces), watch.finish()], watch.matched


def offline(text, stops, shown=False):
    """The definition: grow the text by characters until it ends with a stop string; the longest one counts."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end if shown else end - max(map(len, found))], True
    return text, False


def cut(text, cuts):
    """``text`` in pieces that end at ``cuts``."""
    edges = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


ALPHABET = "abé日"
TEXTS = st.text(ALPHABET, max_size=40)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4).map(tuple)


@settings(deadline=None, max_examples=500)
@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 40)), shown=st.booleans())
def test_pieces_do_not_matter(text, stops, cuts, shown):
    emitted, matched = stream(cut(text, cuts), stops, shown)
    assert ("".join(emitted), matched) == offline(text, stops, shown)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 40)))
def test_no_more_is_held_than_may_still_be_cut_off(text, stops, cuts):
    """After each piece, what was not shown is the beginning of a stop string."""
    watch = StopStrings(stops)
    shown, seen = "", ""
    for piece in cut(text, cuts):
        shown += watch.push(piece)
        seen += piece
        if watch.matched:
            break
        held = seen.removeprefix(shown)
        assert shown + held == seen
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, stops=STOPS, include=st.booleans())
def test_tokens_of_half_characters_do_not_matter(tokenizer, text, stops, include):
    detokenizer = Detokenizer(tokenizer)
    pieces = [*map(detokenizer.push, tokenizer.encode(text)), detokenizer.finish()]
    emitted, matched = stream(pieces, stops, include)
    assert ("".join(emitted), matched) == offline(text, stops, include)


@pytest.mark.parametrize(
    ("pieces", "stops", "emitted"),
    [
        pytest.param(["a", "END", "b"], ["END"], ["a", "", "", ""], id="whole"),
        pytest.param(["aE", "N", "Db"], ["END"], ["a", "", "", ""], id="spread"),
        pytest.param(["aE", "N", "x"], ["END"], ["a", "", "ENx", ""], id="false-alarm"),
        pytest.param(["aEN"], ["END"], ["a", "EN"], id="held-at-the-end"),
        pytest.param(["EEND"], ["END"], ["E", ""], id="restart-inside"),
        pytest.param(["xabcd"], ["bc", "abcd"], ["xa", ""], id="first-completed-wins"),
        pytest.param(["xabc"], ["bc", "abc"], ["x", ""], id="longest-of-one-end-wins"),
    ],
)
def test_what_is_shown_when(pieces, stops, emitted):
    assert stream(pieces, stops)[0] == emitted
