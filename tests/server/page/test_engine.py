"""The live page on ``redraft serve`` with a real engine: what it shows is what the API says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "ab ab ab ab ab ab"}],
    "max_tokens": 64,
    "temperature": 0.3,
    "seed": 5,
}


@pytest.fixture(scope="module")
def url(browser: object, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a tiny target that drafts in every round."""
    folder = tmp_path_factory.mktemp("page")
    target = make_tiny_target(folder / "tiny", tokenizer=True)
    options = ["--target", str(target), "--draft", "ngram", "--speculation", "6", "--device", "cpu"]
    with ServedProcess(options, folder / "log", environment) as process:
        yield process.url
        assert process.stop() == 0
        assert "Traceback" not in process.printed, process.printed


def test_the_page_shows_what_the_engine_did(visit, url):
    with httpx2.Client(base_url=url, timeout=60) as client:
        plain = client.post("/v1/chat/completions", json={**BODY, "speculation": {"enabled": False}}).json()
        reply = client.post(
            "/v1/chat/completions", json={**BODY, "include_rounds": True, "include_metrics": True}
        ).json()
    text = reply["choices"][0]["message"]["content"]
    rounds = reply["rounds"]
    tokens = [token for each in rounds for token in each["tokens"]]
    assert "".join(token["text"] for token in tokens) == text == plain["choices"][0]["message"]["content"]
    counted = reply["metrics"]["speculative_decoding"]
    assert sum(len(each["nodes"]) for each in rounds) == counted["num_draft_tokens"]
    accepted = sum(node["accepted"] for each in rounds for node in each["nodes"])
    assert sum(token["drafted"] for token in tokens) == accepted == counted["num_accepted_draft_tokens"] > 0
    assert all(len(each["nodes"]) <= 6 for each in rounds)

    page = visit(url, reduced_motion="reduce")
    page.get_by_label("Prompt").fill(BODY["messages"][0]["content"])
    for label, name in (("Temperature", "temperature"), ("Most tokens", "max_tokens"), ("Seed", "seed")):
        page.get_by_label(label).fill(str(BODY[name]))
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#status")).to_have_text(re.compile("^Done"))
    assert page.locator("#text").text_content() == text
    expect(page.locator("#text .token.drafted")).to_have_count(accepted)
    expect(page.locator("#rounds .round")).to_have_count(len(rounds))
    assert page.locator("#text .token.corrected").count() > 0
    page.get_by_role("button", name="Race plain decoding").click()
    expect(page.locator("#verdict")).to_contain_text(f"Both texts are equal, token for token ({len(tokens)} tokens).")
    assert page.locator("#plain .text").text_content() == text
    assert page.locator("#speculative .text").text_content() == text
