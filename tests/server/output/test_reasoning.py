"""Reasoning is split from the answer whatever pieces the text comes in, and its tokens are counted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.server.limits import MAX_HELD_SPACES
from redraft.server.output.formats import OutputFormats
from redraft.server.output.json_calls import JsonCalls, LlamaCalls
from redraft.server.output.reader import OutputReader
from redraft.server.output.reasoning import TAGS, ReasoningSplitter
from redraft.server.output.xml_calls import XmlCalls

THINK = TAGS["think"]


def split(pieces, opened=False):
    """Reasoning and answer of a reply that comes in ``pieces``, and where its reasoning ends."""
    splitter = ReasoningSplitter(THINK, opened=opened)
    parts = [*(splitter.push(piece) for piece in pieces), splitter.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts), splitter.end


def whole(text, opened):
    """The definition, on the whole text."""
    rest = text
    if not opened:
        if not text.lstrip().startswith(THINK.open):
            return "", text, 0
        rest = text.lstrip().removeprefix(THINK.open)
    reasoning, closed, answer = rest.partition(THINK.close)
    if not closed:
        return rest.lstrip(), "", None
    return reasoning.strip(), answer.lstrip(), len(text) - len(answer)


PARTS = ["<think>", "</think>", "<", "<th", "/think>", "think>", "\n", " ", "a", "é日", "</thi"]


@settings(deadline=None, max_examples=500)
@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=20),
    opened=st.booleans(),
)
def test_pieces_do_not_matter(parts, cuts, opened):
    text = "".join(parts)
    edges = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    assert split(pieces, opened) == split(list(text), opened) == whole(text, opened)


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("\n\nYes.", False, "", "\n\nYes."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("Hm. And", True, "Hm. And", ""),
        ("Yes <think>no</think>.", False, "", "Yes <think>no</think>."),
        ("a</think>b</think>", True, "a", "b</think>"),
        ("<thinking> is", False, "", "<thinking> is"),
    ],
)
def test_examples(text, opened, reasoning, answer):
    assert split(list(text), opened)[:2] == split([text], opened)[:2] == (reasoning, answer)


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("many", [MAX_HELD_SPACES - 1, MAX_HELD_SPACES, MAX_HELD_SPACES + 1, 3 * MAX_HELD_SPACES])
def test_many_spaces_are_not_kept_back(many, opened):
    spaces = "\n" * many
    for text in (f"{spaces}<think>a</think>b", f"<think>a{spaces}</think>b", f"a{spaces}</thi", f"</think>{spaces}b"):
        assert split([text], opened) == split(list(text), opened)
    splitter = ReasoningSplitter(THINK, opened=opened)
    parts = [splitter.push(char) for char in "a" + spaces]
    assert sum(len(part[0] + part[1]) for part in parts) >= many - MAX_HELD_SPACES


def test_reasoning_is_shown_as_it_comes():
    splitter = ReasoningSplitter(THINK, opened=True)
    assert [splitter.push(piece) for piece in ["a", " b", "  ", "c<", "/th", "e"]] == [
        ("a", ""), (" b", ""), ("", ""), ("  c", ""), ("", ""), ("</the", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "opened", "expected"),
    [
        (["<think>", "a", " b", "</think>", "yes"], False, 4),
        (["<th", "ink>", "a", "</", "think>", "yes"], False, 5),
        (["\n", "<think>", "</think>", "yes"], False, 3),
        (["a", "b</think>yes", "no"], True, 2),
        (["a", "b"], True, 2),
        (["yes", "no"], False, 0),
        (["\n"], False, 0),
        ([], True, 0),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "held back"])
def test_tokens_of_the_reasoning(tokens, opened, expected, late):
    """Also when text reaches the reader later than its tokens, as behind half a stop string."""
    reader = OutputReader(ReasoningSplitter(THINK, opened=opened))
    held = ""
    for token in tokens:
        held += token
        if not late:
            reader.push(held)
            held = ""
        reader.took(len(token))
    reader.push(held)
    reader.finish()
    assert reader.reasoning_tokens == expected


def test_the_prompt_may_open_the_block():
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.opened_by("what is <think>?\n<|im_start|>assistant\n")
    assert THINK.left_open("<think>\nso far")
    assert not THINK.left_open("<think>\nso far</think>")
    assert not THINK.left_open("nothing")


@pytest.mark.parametrize(
    ("template", "tags", "calls"),
    [
        ("{{ messages }}", None, None),
        ("... </think> ... <tool_call>", "think", JsonCalls),
        ("[THINK]..[/THINK]", "mistral", None),
        ("<seed:think></seed:think>", "seed", None),
        ("<tool_call>\n<function=name>", None, XmlCalls),
        ("<|python_tag|>", None, LlamaCalls),
        ('Environment: ipython ... "parameters": ', None, LlamaCalls),
        ("[TOOL_CALLS]", None, None),
    ],
)
def test_formats_by_the_template(template, tags, calls):
    assert OutputFormats.of(template) == OutputFormats(None if tags is None else TAGS[tags], calls)


def test_formats_by_the_operator():
    assert OutputFormats.of("</think><tool_call>", "none", "none") == OutputFormats()
    assert OutputFormats.of("", "mistral", "llama3") == OutputFormats(TAGS["mistral"], LlamaCalls)


def test_marks_that_a_reader_must_see():
    assert OutputReader().marks == frozenset()
    assert OutputReader(ReasoningSplitter(THINK, opened=True)).marks == {"<think>", "</think>"}
    assert OutputReader(None, LlamaCalls({})).marks == {"<|python_tag|>"}
    assert OutputReader(None, XmlCalls({})).marks == {"<tool_call>", "</tool_call>"}
