"""Streamed text is the text of all tokens at once, and never holds half a character."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from redraft.server.detokenize import REPLACEMENT, Detokenizer

VOCABULARY = 260


def pieces(decode, ids):
    """Each push's text, then the end's."""
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=60))
def test_any_tokens_join_to_the_text_of_all(tokenizer, ids):
    assert "".join(pieces(tokenizer.decode, ids)) == tokenizer.decode(ids)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]).filter(lambda char: char != REPLACEMENT), max_size=30))
def test_no_piece_of_a_valid_text_has_half_a_character(tokenizer, text):
    streamed = pieces(tokenizer.decode, tokenizer.encode(text))
    assert "".join(streamed) == text
    assert not any(REPLACEMENT in piece for piece in streamed)


def test_a_character_appears_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("a日b")
    # "日" is a merged token of two bytes and one of one byte
    assert pieces(tokenizer.decode, ids) == ["a", "", "日", "b", ""]


def test_a_long_run_of_broken_bytes_is_shown_as_it_comes(tokenizer):
    (byte,) = tokenizer.encode("日")[1:]
    streamed = pieces(tokenizer.decode, [byte] * 50)
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

    def decode(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True)

    streamed = pieces(decode, ids)
    assert "".join(streamed) == decode(ids)
    assert not any(REPLACEMENT in piece for piece in streamed)
