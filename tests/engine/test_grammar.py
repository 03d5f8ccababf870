"""Masks of trees against a grammar asked token by token, and what grammars refuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import Tokenizer

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.server.engine.grammar import EVERY_TOKEN, Grammars, Matcher
from redraft.server.engine.types import RedraftError

END = VOCAB - 1
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ab", "abc", "x"]}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
GRAMMARS = {
    "schema": LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides=ONE_LINE),
    "regex": LLMatcher.grammar_from_regex("(a|bc)+(d[xy]?)?"),
    "choice": LLMatcher.grammar_from_lark('start: "yes" | "yes, but" | "né"'),
}
TEXTS = {
    "schema": ['{"name": "abc", "age": 12}', '{"name": "x", "age": 7}'],
    "regex": ["abcbcady", "aad"],
    "choice": ["yes, but", "né"],
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("tiny"), tokenizer=True) / "tokenizer.json"


@pytest.fixture(scope="module")
def grammars(tokenizer_file: Path) -> Grammars:
    return Grammars(tokenizer_file, VOCAB, [END])


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


def allowed(mask: np.ndarray) -> set[int]:
    return {token for token in range(VOCAB) if int(mask[token // 32]) >> (token % 32) & 1}


def masks_of(matcher: Matcher, token: Sequence[int] = (0,), parent: Sequence[int] = (0,)) -> np.ndarray:
    """Of a tree, the root alone if none is given."""
    masks = np.full((len(token), -(-VOCAB // 32)), EVERY_TOKEN, dtype=np.int32)
    matcher.masks(token, parent, masks)
    return masks


def asked_one_by_one(grammars: Grammars, grammar: str, path: list[int]) -> set[int] | None:
    """What may follow ``path``, by trying every token of the vocabulary; None if the path itself is refused.

    Where the text has no alternative, the tokens that the tokenizer would write it with have none either.
    """
    state = grammars.matcher(grammar)._matcher
    for token in path:
        if not state.consume_token(token):
            return None
    if state.is_stopped():
        return {END}
    possible = {token for token in range(VOCAB) if state.validate_tokens([token]) == 1}
    forced = state.compute_ff_tokens()
    assert not forced or forced[0] in possible
    return {forced[0]} if forced else possible


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(GRAMMARS)), data=st.data())
def test_masks_of_a_tree(grammars: Grammars, tokenizer: Tokenizer, name: str, data: st.DataObject) -> None:
    """Of a random tree whose tokens are partly right and partly anything."""
    grammar, text = GRAMMARS[name], data.draw(st.sampled_from(TEXTS[name]))
    ids = tokenizer.encode(text).ids
    done = data.draw(st.integers(0, len(ids)))
    token, parent, path = [0], [0], [list[int]()]
    for node in range(1, data.draw(st.integers(1, 12))):
        above = data.draw(st.integers(0, node - 1))
        position = done + len(path[above])
        right = ids[position] if position < len(ids) else END
        chosen = right if data.draw(st.booleans()) else data.draw(st.integers(0, VOCAB - 1))
        token.append(chosen)
        parent.append(above)
        path.append([*path[above], chosen])
    matcher = grammars.matcher(grammar)
    for taken in ids[:done]:
        matcher.commit(taken)
    masks = masks_of(matcher, token, parent)
    for node, tokens in enumerate(path):
        if END in tokens:  # nothing follows
            continue
        expected = asked_one_by_one(grammars, grammar, ids[:done] + tokens)
        if expected is None:
            assert (masks[node] == EVERY_TOKEN).all()
        else:
            assert allowed(masks[node]) == expected
    # walking the tree left no trace
    assert np.array_equal(masks_of(matcher)[0], masks[0])


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_whole_texts_are_taken_and_end(grammars: Grammars, tokenizer: Tokenizer, name: str) -> None:
    for text in TEXTS[name]:
        matcher = grammars.matcher(GRAMMARS[name])
        for token in tokenizer.encode(text).ids:
            assert token in allowed(masks_of(matcher)[0])
            matcher.commit(token)
        assert END in allowed(masks_of(matcher)[0])
        matcher.commit(END)


def test_forced_tokens_spell_what_has_no_alternative(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = grammars.matcher(GRAMMARS["schema"])
    forced = matcher.forced(64)
    assert tokenizer.decode(forced) == '{"name": "'[: len(tokenizer.decode(forced))]
    assert len(forced) > 2
    assert matcher.forced(2) == forced[:2]
    assert matcher.forced(0) == []
    for token in forced:
        matcher.commit(token)
    assert matcher.forced(64)[: len(forced)] != forced


def test_a_refused_token_is_an_error_without_the_library_s_state(grammars: Grammars) -> None:
    matcher = grammars.matcher(GRAMMARS["regex"])
    with pytest.raises(RedraftError, match="the grammar cannot go on") as caught:
        matcher.commit(0)
    assert "\n" not in str(caught.value)
    with pytest.raises(RedraftError, match="the grammar cannot go on"):
        masks_of(matcher)
    with pytest.raises(RedraftError, match="the grammar cannot go on"):
        matcher.commit(END)


def test_a_broken_grammar_is_refused(grammars: Grammars) -> None:
    with pytest.raises(RedraftError, match="the grammar cannot be used"):
        grammars.matcher("start: /([/")


def test_a_target_without_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(RedraftError, match=r"tokenizer\.json"):
        Grammars(tmp_path / "tokenizer.json", VOCAB, [END]).matcher(GRAMMARS["regex"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RedraftError, match="does not serve structured output"):
        Grammars(tmp_path / "tokenizer.json", VOCAB, [END]).matcher(GRAMMARS["regex"])
