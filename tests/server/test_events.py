"""Events of a stream that are written together are the events that there would be one by one."""

from __future__ import annotations

import json

import pytest

BODY = {"model": "toy", "prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}


def events(server, **body):
    """Each event's JSON, without what differs from reply to reply; the last is the word that ends the stream."""
    text = server.http.post("/v1/completions", json={**BODY, **body}).text
    *datas, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    found = [json.loads(data.removeprefix("data: ")) for data in datas]
    return [{name: value for name, value in event.items() if name not in ("id", "created")} for event in found]


@pytest.mark.parametrize("together", [1, 2, 64])
@pytest.mark.parametrize("n", [1, 5])
def test_events_stay_what_they_are(serve, canned, monkeypatch, together, n):
    monkeypatch.setattr("redraft.server.respond.EVENTS_TOGETHER", together)
    found = events(serve(canned.engine("Hello, wörld! 日本語")), n=n)
    assert found[-1]["usage"]["completion_tokens"] == 22 * n
    choices = [choice for event in found[:-1] for choice in event["choices"]]
    for index in range(n):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == "Hello, wörld! 日本語"
        assert len(own) > 6
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]


@pytest.mark.parametrize("together", [1, 64])
def test_what_was_made_before_an_error_comes_before_it(serve, canned, monkeypatch, together):
    monkeypatch.setattr("redraft.server.respond.EVENTS_TOGETHER", together)
    engine = canned.scripted(lambda request: [*canned.rounds("abc", sizes=(1,))[:3], canned.failure("boom")])
    *texts, error = events(serve(engine))
    assert "".join(event["choices"][0]["text"] for event in texts) == "abc"
    assert error["error"]["code"] == "engine_error"


def test_events_that_wait_are_written_together(serve, canned, monkeypatch):
    writes = []

    async def send(self, message):
        writes.append(message.get("body", b"").count(b"data: "))
        await self._send(message)

    monkeypatch.setattr("redraft.server.reader.Reader.send", send)
    events(serve(canned.engine("Hello, wörld! 日本語")), n=8)
    assert max(writes) > 3
