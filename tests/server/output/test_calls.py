"""Tool calls are found in a text whatever pieces it comes in, and what only looks like one stays text."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.server.limits import MAX_HELD_CALL, MAX_HELD_SPACES
from redraft.server.output.formats import CALLS

TOOLS = {
    "f": {},
    "get_weather": {
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"anyOf": []}, "deep": {}}
    },
}


def read(kind, pieces, most=None):
    """Text, and name and arguments of each call, of a reply that comes in ``pieces``; checks the deltas' form."""
    parser = CALLS[kind](TOOLS, most=most)
    text, calls = "", []
    for piece in [*pieces, None]:
        more, deltas = parser.finish() if piece is None else parser.push(piece)
        text += more
        for delta in deltas:
            if delta.name:
                assert delta.index == len(calls)
                assert delta.id.startswith("call_")
                calls.append([delta.name, ""])
            assert delta.index == len(calls) - 1
            assert bool(delta.name) == bool(delta.id)
            calls[-1][1] += delta.arguments
    assert parser.begun == len(calls)
    return text, [tuple(call) for call in calls]


def cut(text, cuts):
    """``text`` in pieces that end at ``cuts``."""
    edges = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


WEATHER = '{"city": "Zür\\"ich}", "days": 2}'
CALL = f'{{"name": "get_weather", "arguments": {WEATHER}}}'
LLAMA = f'{{"name": "get_weather", "parameters": {WEATHER}}}'
XML = "<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
SMALL = '{"name": "f", "arguments": {}}'
GOOD = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [("get_weather", WEATHER)]),
    ("hermes", f"I look.\n\n<tool_call>{CALL}</tool_call>\n", "I look.", [("get_weather", WEATHER)]),
    (
        "hermes",
        f"<tool_call>\n{SMALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
        "",
        [("f", "{}"), ("get_weather", WEATHER)],
    ),
    ("hermes", f"<tool_call>{CALL}</tool_call> Done.", " Done.", [("get_weather", WEATHER)]),
    # arguments first, missing, null, as text, and within "function"
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"type": "function", "function": {"name": "f"}}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"type":"function","name":"f","arguments":{"é":[]}}</tool_call>', "", [("f", '{"é":[]}')]),
    # an end that is cut off or lacks a part; arguments that are cut off
    ("hermes", f"<tool_call>{SMALL}</tool_c", "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}</tool_call>x', "x", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>', "", [("f", '{"a": "</tool_call>')]),
    ("llama3", LLAMA, "", [("get_weather", WEATHER)]),
    ("llama3", f"\n\n{LLAMA}\n", "", [("get_weather", WEATHER)]),
    ("llama3", f"{LLAMA}; {LLAMA}", "", [("get_weather", WEATHER)] * 2),
    ("llama3", f"<|python_tag|>{LLAMA}", "", [("get_weather", WEATHER)]),
    ("llama3", f"Let me see. <|python_tag|> {LLAMA}", "Let me see.", [("get_weather", WEATHER)]),
    ("llama3", f"{LLAMA} I called.", " I called.", [("get_weather", WEATHER)]),
    ("qwen3_coder", f"<tool_call>\n{XML}\n</tool_call>", "", [("get_weather", '{"city": "Zürich", "days": 2}')]),
    ("qwen3_coder", f"So:\n<tool_call>{XML}</tool_call>", "So:", [("get_weather", '{"city": "Zürich", "days": 2}')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>", "", [("f", "{}")]),
    ("qwen3_coder", "<tool_call><function=f></tool_call>", "", [("f", "{}")]),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>\n\n1\n\n</parameter>", "", [("f", '{"a": "\\n1\\n"')]),
]
LOOKS = [
    ("hermes", "a < b <tool_cal and <tool_call"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call> print(1) </tool_call>"),
    ("hermes", '<tool_call>\n {"name": "f", "argu'),
    ("hermes", " \n <tool_call>\n"),
    ("hermes", "<tool_call>{}</tool_call>"),
    ("hermes", "text with spaces  \n "),
    ("llama3", '{"temperature": 20, "name": "f", "parameters": {}}'),
    ("llama3", '{"name": "unknown", "parameters": {}}'),
    ("llama3", '{"name": "f", "parameters": 5}'),
    ("llama3", '{"nam'),
    ("llama3", " \n"),
    ("llama3", "<|python_tag|>print(1)"),
    ("llama3", f"As JSON: {LLAMA}"),
    ("qwen3_coder", "<tool_call>\n<function=unknown>\n</function>"),
    ("qwen3_coder", f"<tool_call>{CALL}</tool_call>"),
    ("qwen3_coder", "<tool_call><function="),
    ("qwen3_coder", "<tool_call><func"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "shown", "calls"), GOOD, ids=range(len(GOOD)))
def test_calls(kind, text, shown, calls):
    for pieces in ([text], list(text)):
        assert read(kind, pieces) == (shown, calls)


@pytest.mark.parametrize(("kind", "text"), LOOKS, ids=range(len(LOOKS)))
def test_what_only_looks_like_a_call_is_text(kind, text):
    for pieces in ([text], list(text)):
        assert read(kind, pieces) == (text, [])


PARTS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", CALL, LLAMA, XML, SMALL, "{", "}", '"', "\\", ";", " ", "\n", "é",
    '{"name": "f", "arguments": ', '{"name": "g", "parameters": {', '{"arguments": {"x": "}"}, "name": "f"}', "5",
    '{"type":', "<function=f>", "<function=", "<parameter=city>", "<parameter=days>", "</parameter>",
    "</function>", "a", "<",
]  # fmt: skip


@settings(deadline=None, max_examples=600)
@given(
    kind=st.sampled_from(sorted(CALLS)),
    parts=st.lists(st.sampled_from(PARTS), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=40),
    most=st.sampled_from([None, 1]),
)
def test_pieces_do_not_matter(kind, parts, cuts, most):
    text = "".join(parts)
    whole = read(kind, [text], most)
    assert read(kind, cut(text, cuts), most) == whole
    assert read(kind, list(text), most) == whole


@pytest.mark.parametrize("most", [MAX_HELD_SPACES - 1, MAX_HELD_SPACES, MAX_HELD_SPACES + 1, 3 * MAX_HELD_SPACES])
@pytest.mark.parametrize("kind", CALLS)
def test_many_spaces_are_not_kept_back(kind, most):
    call = {"hermes": f"<tool_call>~{SMALL[:-1]}~}}~</tool_call>", "llama3": f"{SMALL}~;~{SMALL}~;"}.get(
        kind, "<tool_call>~<function=f>~<parameter=a>5</parameter>~</function>~</tool_call>"
    )
    parser = CALLS[kind](TOOLS)
    for at in range(1, call.count("~") + 1):
        head, _, tail = call.replace("~", "", at - 1).partition("~")
        text = head + " " * most + tail.replace("~", "") + "end"
        whole = read(kind, [text])
        for size in (1, 7, 1000):
            assert read(kind, [text[start : start + size] for start in range(0, len(text), size)]) == whole
    shown = "".join(parser.push(" ")[0] for _ in range(5000))
    assert len(shown) >= 5000 - MAX_HELD_SPACES - 1


@settings(deadline=None, max_examples=300)
@given(kind=st.sampled_from(sorted(CALLS)), text=st.text('a {}"\n<;:é日', max_size=60))
def test_texts_without_a_call_come_out_whole(kind, text):
    assert read(kind, list(text)) == (text, [])


@pytest.mark.parametrize(("kind", "call"), [("hermes", f"<tool_call>{CALL}</tool_call>"), ("llama3", LLAMA)])
def test_arguments_stream_as_they_come(kind, call):
    parser = CALLS[kind](TOOLS)
    deltas = [delta.arguments for char in call for delta in parser.push(char)[1]]
    assert len(deltas) == len(WEATHER) + 1
    assert "".join(deltas) == WEATHER


def test_xml_values_follow_the_schema():
    values = {"city": "5", "days": "5", "where": "[1, null]", "deep": "True", "unknown": "5"}
    inner = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    _, ((_, arguments),) = read("qwen3_coder", [f"<tool_call>\n<function=get_weather>\n{inner}</function>"])
    assert json.loads(arguments) == {"city": "5", "days": 5, "where": [1, None], "deep": True, "unknown": "5"}
    for value in ("NaN", "1e400", "[1,", "x"):
        inner = f"<parameter=days>{value}</parameter>"
        _, ((_, arguments),) = read("qwen3_coder", [f"<tool_call><function=get_weather>{inner}</function>"])
        assert json.loads(arguments, parse_constant=pytest.fail) == {"days": value}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["</parameter", ">", "</", "x" * 30, "\n", "<parameter=a>", "ü"])), st.data())
def test_a_long_xml_value_is_looked_at_once(parts, data):
    """Whatever it has that looks like its end, and however it is cut."""
    value = "".join(parts).replace("</parameter>", "")
    text = f"<tool_call><function=f><parameter=days>{value}</parameter></function></tool_call>"
    cuts = data.draw(st.lists(st.integers(0, len(text))))
    wanted = {"days": value.removeprefix("\n").removesuffix("\n")}
    _, ((_, arguments),) = read("qwen3_coder", cut(text, cuts))
    assert json.loads(arguments) == json.loads(read("qwen3_coder", [text])[1][0][1])
    assert list(json.loads(arguments)) == list(wanted)
    parser = CALLS["qwen3_coder"](TOOLS)
    for char in text[: -len("</parameter></function></tool_call>")]:
        parser.push(char)
        assert len(parser._held) < len("<tool_call><function=")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("hermes", f"<tool_call>{SMALL}</tool_call>"),
        ("llama3", f"{SMALL};"),
        ("qwen3_coder", "<tool_call><function=f></function></tool_call>"),
    ],
)
def test_one_call_may_end_the_reply(kind, text):
    parser = CALLS[kind](TOOLS, most=1)
    for char in text:
        parser.push(char)
    assert parser.ended
    assert read(kind, [text * 3 + "more"], most=1) == ("", [("f", "{}")])


def test_no_more_is_held_than_a_call_may_have():
    for text in ('{"name": "f", "arguments": "' + "x" * MAX_HELD_CALL, '{"name": "f",' + " " * MAX_HELD_CALL):
        parser = CALLS["hermes"](TOOLS)
        shown = "".join(parser.push(piece)[0] for piece in cut("<tool_call>" + text + "y" * 9, range(0, 70_000, 500)))
        assert len(shown) > MAX_HELD_CALL
        assert shown + parser.finish()[0] == "<tool_call>" + text + "y" * 9
