"""A choice is the same however its tokens come in rounds: text, reasoning, calls, counts, and where it ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.server.choice import Choice
from redraft.server.detokenize import Detokenizer
from redraft.server.engine.types import FinishReason, Request, SamplingParams
from redraft.server.output.json_calls import JsonCalls
from redraft.server.output.reader import OutputReader
from redraft.server.output.reasoning import TAGS, ReasoningSplitter
from redraft.server.stops import StopStrings

PARTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {"a": "é"}}',
    "日",
    "ö ",
    "\n",
    "x",
]


class Record:
    """Counts what belongs to the choice."""

    def __init__(self):
        self.tokens = 0

    def arrived(self, output):
        """Nothing to count."""

    def took(self, tokens):
        self.tokens += tokens

    def finished(self, reason):
        self.reason = reason


def run(canned, text, sizes, finish, stops, most, opened):
    """Everything of a choice whose ``text`` comes in rounds of ``sizes`` tokens, joined."""
    engine = canned.scripted(lambda request: canned.rounds(text, sizes=sizes, finish=finish))
    record = Record()
    reader = OutputReader(ReasoningSplitter(TAGS["think"], opened=opened), JsonCalls({"f": {}}, most=most))
    request = Request("r", (1,), SamplingParams(99))
    ends = frozenset(canned.info.eos_token_ids)
    choice = Choice(
        0, request, Detokenizer(canned.tokenizer.showing(None)), StopStrings(stops), ends, lambda: record, reader
    )
    deltas = []
    asyncio.run(choice.run(engine, deltas.append))
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert [delta.tokens for delta in deltas] == sorted(delta.tokens for delta in deltas)
    calls = [(call.name, call.arguments) for delta in deltas for call in delta.calls]
    return SimpleNamespace(
        text="".join(delta.text for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        names=[name for name, _ in calls if name],
        arguments="".join(arguments for _, arguments in calls),
        finish=deltas[-1].finish_reason,
        tokens=(deltas[-1].tokens, deltas[-1].reasoning_tokens, record.tokens),
        reason=record.reason,
    )


@settings(deadline=None, max_examples=150)
@given(
    parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    finish=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
    stops=st.sampled_from([(), ("日x",), ("ö", "</"), ('": {',)]),
    most=st.sampled_from([None, 1]),
    opened=st.booleans(),
)
def test_rounds_do_not_matter(canned, parts, sizes, finish, stops, most, opened):
    text = "".join(parts)
    plain = run(canned, text, (1,), finish, stops, most, opened)
    assert run(canned, text, sizes, finish, stops, most, opened) == plain
    assert plain.tokens[0] == plain.tokens[2] >= plain.tokens[1]
    assert (plain.finish == "tool_calls") <= bool(plain.names)
