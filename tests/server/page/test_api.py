"""The live page's way with answers that are not those of a server that is well, and what it keeps of one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect


def write(page: Any) -> None:
    page.get_by_role("button", name="Write").click()


def answer_health(page: Any, status: int, kind: str, body: str) -> None:
    """Whoever asks for /health gets this, once the page has found its server well."""
    expect(page.locator("#status")).to_have_text("Ready.")
    page.route("**/health", lambda route: route.fulfill(status=status, content_type=kind, body=body))


def test_a_refusal_is_told_in_the_servers_words(visit, serve, answers):
    page = visit(serve(answers()).url, expected=["429"])
    error = {"message": "Ask less.", "type": "rate_limit_error", "param": None, "code": "rate_limited"}
    answer_health(page, 429, "application/json", json.dumps({"error": error}))
    write(page)
    expect(page.get_by_role("alert")).to_have_text("Ask less.")


@pytest.mark.parametrize(("kind", "body"), [("text/html", "<p>Welcome"), ("application/json", "null")])
def test_an_answer_of_somebody_else_is_not_waited_upon(visit, serve, answers, kind, body):
    """A proxy's own page with 200, say."""
    engine = answers()
    page = visit(serve(engine).url)
    answer_health(page, 200, kind, body)
    write(page)
    expect(page.get_by_role("alert")).to_have_text("What answers here is not the server.")
    assert engine.requests == []


def test_of_a_server_that_is_gone_nothing_is_kept(visit, serve, answers, tokenizer, monkeypatch):
    """The next one's target may have the chat template that this one's lacks."""
    engine = answers()
    server = serve(engine)
    page = visit(server.url, expected=["400", "404"])
    expect(page.locator("#status")).to_have_text("Ready.")
    page.get_by_label("Prompt").fill("Once")
    with monkeypatch.context() as patch:
        patch.setattr(server.service, "templates", None)
        write(page)
        expect(page.locator("#status")).to_have_text(re.compile("^Done: "))
    server.service.settings = replace(server.service.settings, served_model_name="another")
    write(page)
    expect(page.get_by_role("alert")).to_contain_text("There is no model 'toy' here")
    write(page)
    expect(page.locator("#about")).to_contain_text("another, ")
    expect(page.locator("#status")).to_have_text(re.compile("^Done: "))
    prompts = [tokenizer.decode(request.prompt) for request in engine.requests]
    assert prompts == ["Once", "<user>Once\n<assistant>"]


WAIT = """async () => {
  const { ready } = await import("/page/api.js");
  const stop = new AbortController();
  const held = new Set(), seen = [];
  const { signal } = stop;
  const [add, remove] = ["addEventListener", "removeEventListener"].map((name) => signal[name].bind(signal));
  signal.addEventListener = (type, heard, options) => { held.add(heard); add(type, heard, options); };
  signal.removeEventListener = (type, heard) => { held.delete(heard); remove(type, heard); };
  const say = () => { if (seen.push(held.size) === 3) setTimeout(() => stop.abort("enough")); };
  return [seen, await ready(say, signal).catch((reason) => reason)];
}"""


def test_waiting_leaves_nothing_behind_and_can_be_stopped(visit, serve, canned):
    engine = canned.engine()
    engine.info = None
    page = visit(serve(engine).url)
    assert page.evaluate(WAIT) == [[0, 0, 0], "enough"]
