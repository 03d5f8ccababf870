"""Streamed text is the text of all tokens at once, and never holds half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from redraft.server.detokenize import MAX_WINDOW, REPLACEMENT, Detokenizer
from redraft.server.text import TextTokenizer

VOCABULARY = 260


def pieces(tokenizer, ids):
    """Each push's text, then the end's."""
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=60))
def test_any_tokens_join_to_the_text_of_all(tokenizer, ids):
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]).filter(lambda char: char != REPLACEMENT), max_size=30))
def test_no_piece_of_a_valid_text_has_half_a_character(tokenizer, text):
    streamed = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(streamed) == text
    assert not any(REPLACEMENT in piece for piece in streamed)


SPECIAL = ("<|a|>", "<｜日｜>", "[B]")


@pytest.fixture(scope="module")
def special(tokenizer):
    """The toy tokenizer with more special tokens."""
    own = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return TextTokenizer(own, None)


@settings(deadline=None, max_examples=300)
@given(
    ids=st.lists(st.one_of(st.integers(0, VOCABULARY + 5), st.integers(VOCABULARY - 1, VOCABULARY + 2)), max_size=40),
    shown=st.one_of(st.none(), st.sets(st.sampled_from(SPECIAL))),
)
def test_special_tokens_that_show_stand_where_they_were(special, ids, shown):
    """Against the definition: special tokens cut the text, and what is between them is decoded as one."""
    decoder = special.showing(shown)
    ours = {special.token_id(text): text for text in SPECIAL}
    known = [token for token in ids if token < VOCABULARY - 1 or token in ours]
    visible = [token for token in known if token not in ours or shown is None or ours[token] in shown]
    assert "".join(pieces(decoder, [token for token in ids if token != VOCABULARY - 1])) == decoder.decode(visible)
    text, run = "", []
    for token in [*visible, None]:
        if token is None or token in ours:
            text += special.decode(run) + ours.get(token, "")
            run = []
        else:
            run.append(token)
    if REPLACEMENT not in text:
        assert decoder.decode(visible) == text


def test_a_character_appears_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("a日b")
    # "日" is a merged token of two bytes and one of one byte
    assert pieces(tokenizer, ids) == ["a", "", "日", "b", ""]


def test_a_long_run_of_broken_bytes_is_shown_as_it_comes(tokenizer):
    (byte,) = tokenizer.encode("日")[1:]
    streamed = pieces(tokenizer, [byte] * 50)
    assert "".join(streamed) == REPLACEMENT * 50
    assert len("".join(streamed[:-1])) >= 40


def byte_fallback_tokenizer() -> Tokenizer:
    """Like Llama 2's: words with a leading bar, byte tokens, and the text's first space stripped."""
    words = ["<unk>", "▁", "▁the", "▁cat", "s", "▁é"]
    vocab = {token: index for index, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(st.sampled_from(["▁the", "▁cat", "s", "▁é", "▁", "<s>", "日", "é", "🦊"]), max_size=20))
def test_byte_tokens_and_leading_spaces(parts):
    tokenizer = byte_fallback_tokenizer()
    ids = []
    for part in parts:
        known = tokenizer.token_to_id(part)
        ids += [known] if known is not None else [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in part.encode()]

    text = TextTokenizer(tokenizer, None)
    streamed = pieces(text, ids)
    assert "".join(streamed) == text.decode(ids)
    assert not any(REPLACEMENT in piece for piece in streamed)


class Watched:
    """A tokenizer that notes the longest list of tokens it had to decode."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.skips = tokenizer.skips
        self.longest = 0

    def decode(self, ids):
        self.longest = max(self.longest, len(ids))
        return self._tokenizer.decode(ids)


def check_bounded(tokenizer, ids):
    """``ids`` stream as they decode, and no decoding on the way grows with them."""
    watched = Watched(tokenizer)
    assert "".join(pieces(watched, ids)) == tokenizer.decode(ids)
    assert watched.longest <= MAX_WINDOW


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.tuples(st.sampled_from("éð日🦊"), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=5),
    end=st.sampled_from(["", "a", "日", "日a"]),
)
def test_broken_bytes_without_end_are_decoded_piecewise(tokenizer, parts, end):
    ids = [token for char, start, stop in parts for token in tokenizer.encode(char)[start:stop]]
    check_bounded(tokenizer, [*tokenizer.encode("a"), *(ids * 60), *tokenizer.encode(end)])


@settings(deadline=None, max_examples=60)
@given(cycle=st.text(min_size=1, max_size=4), offset=st.integers(0, 3), end=st.sampled_from(["", "s", "日s"]))
def test_a_broken_run_of_fallback_bytes_is_decoded_piecewise(cycle, offset, end):
    tokenizer = byte_fallback_tokenizer()
    run = [0x80, *(cycle * 200).encode(errors="replace")[offset : 300 + offset]]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in run]
    ids += [tokenizer.token_to_id("s")] if end else []
    ids += [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "日".encode()] if end == "日s" else []
    check_bounded(TextTokenizer(tokenizer, None), ids)


def test_tokens_that_show_nothing_are_not_decoded(tokenizer):
    special, beyond = tokenizer.encode("<|end|>")[0], 10**6
    a, first, last = tokenizer.encode("a日")
    check_bounded(tokenizer, [a, *[special, beyond] * 500, first, *[special, beyond] * 500, last, a])
