"""The live page in Chromium: what it shows, how it is used, and that model output stays text."""

from __future__ import annotations

import re
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

TEXT = "Hello, wörld! 日本語"
KINDS = ["corrected", "drafted drafted own", "drafted own", "drafted drafted drafted own"]
"""Of the tokens of rounds of 1, 3, 2 and 4: alone it replaced a wrong one; behind accepted ones nothing was drafted."""
DONE = re.compile("^Done: ")


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def status(page: Any) -> Any:
    return page.locator("#status")


def test_text_streams_in_the_colours_of_its_tokens(visit, serve, answers):
    page = visit(serve(answers(pause=0.02)).url)
    expect(page.locator("#about")).to_have_text("toy, drafted by canned-1")
    expect(status(page)).to_have_text("Ready.")
    page.get_by_label("Prompt").fill("hi")
    press(page, "Write")
    text = page.locator("#text")
    expect(status(page)).to_have_text(DONE)
    assert text.text_content() == TEXT
    tokens = text.locator(".token").all()
    kinds = [(token.get_attribute("class") or "").removeprefix("token ") for token in tokens]
    rounds = [" ".join(kinds[start : start + size]) for start, size in ((0, 1), (1, 3), (4, 2), (6, 4), (10, 1))]
    assert rounds == [*KINDS, KINDS[0]]
    assert len(tokens) == 22
    assert page.locator("#count").text_content() == "22"
    # ten rounds of 1 3 2 4 1 3 2 4 1 1, all but the last of each drafted
    assert page.locator("#tau").text_content() == "2.20"
    assert page.locator("#share").text_content() == "55 %"
    assert float(page.locator("#speed").text_content()) > 0
    assert "22 tokens in" in status(page).text_content()
    expect(page.locator("#tau-line polyline")).to_have_count(1)


def test_the_request_is_what_was_set(visit, serve, answers):
    engine = answers()
    page = visit(serve(engine).url)
    page.get_by_label("Prompt").fill("hi")
    page.get_by_label("Temperature").fill("0.75")
    page.get_by_label("Most tokens").fill("77")
    page.get_by_label("Seed").fill("9007199254740991")
    press(page, "Write")
    expect(status(page)).to_have_text(DONE)
    (request,) = engine.requests
    assert (request.params.temperature, request.params.max_tokens, request.params.seed) == (0.75, 77, 2**53 - 1)
    assert (request.show_tree, request.max_nodes) == (True, None)
    for label, value in [("Temperature", "3"), ("Most tokens", "0"), ("Seed", "-1"), ("Prompt", "")]:
        page.get_by_label(label).fill(value)
        press(page, "Write")
        expect(page.get_by_label(label)).to_be_focused()
        page.get_by_label(label).fill("1")
    assert len(engine.requests) == 1


def test_rounds_show_their_trees_on_hover(visit, serve, answers):
    page = visit(serve(answers()).url)
    press(page, "Write")
    expect(status(page)).to_have_text(DONE)
    rounds = page.locator("#rounds .round")
    expect(rounds).to_have_count(10)
    assert [chip.get_attribute("class") for chip in rounds.nth(1).locator(".chip").all()] == [
        f"chip {kind}" for kind in KINDS[1].split()
    ]
    expect(rounds.nth(9).locator(".chip").last).to_have_text("end")
    rounds.nth(1).hover()
    expect(page.locator("#tree-caption")).to_contain_text("Round 2, 3 tokens, 2 of 4 drafted accepted")
    tree = page.locator("#tree-nodes")
    assert tree.locator(".chip.drafted").all_text_contents() == ["e, accepted, score 0.50", "ll, accepted, score 0.50"]
    assert [text[1:] for text in tree.locator(".chip.rejected").all_text_contents()] == [
        ", rejected, score 0.25",
        ", rejected, score 0.13",
    ]
    expect(tree.locator(".chip.own")).to_have_text("o, the target’s own")
    # the target's own token stands below the last accepted one, a rejected branch below its own parent
    expect(tree.locator("li:has(> .drafted) > ul > li:has(> .drafted) > ul > li > .own")).to_have_count(1)
    expect(tree.locator("li:has(> .anchor) > ul > li:has(> .rejected) > ul > li > .rejected")).to_have_count(1)
    page.locator("#text .token").nth(6).hover()
    expect(page.locator("#tree-caption")).to_contain_text("Round 4, ")


def test_it_can_be_used_with_the_keyboard_alone(visit, serve, answers):
    engine = answers()
    page = visit(serve(engine).url)
    expect(status(page)).to_have_text("Ready.")
    order = ["prompt", "temperature", "tokens", "seed", "write", "race", "stop", "text"]
    for name in order:
        page.keyboard.press("Tab")
        expect(page.locator(f"#{name}")).to_be_focused()
    page.locator("#prompt").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Control+Enter")
    expect(status(page)).to_have_text(DONE)
    page.locator("#text").focus()
    page.keyboard.press("Tab")
    rounds = page.locator("#rounds .round")
    expect(rounds.last).to_be_focused()
    for key, number in (("Home", 0), ("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("ArrowUp", 0), ("End", 9)):
        page.keyboard.press(key)
        expect(rounds.nth(number)).to_be_focused()
        expect(page.locator("#tree-caption")).to_contain_text(f"Round {number + 1},")
        expect(page.locator("#rounds .round[tabindex='0']")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(page.locator("#tree")).to_be_focused()
    assert len(engine.requests) == 1


@pytest.mark.parametrize("way", ["Stop", "Escape"])
def test_stopping_frees_the_request(visit, serve, canned, way):
    engine = canned.scripted(lambda request: [*canned.rounds(TEXT)[:3], None])
    page = visit(serve(engine).url)
    press(page, "Write")
    text = page.locator("#text")
    expect(text.locator(".token")).to_have_count(6)
    if way == "Stop":
        press(page, "Stop")
    else:
        page.keyboard.press("Escape")
    expect(status(page)).to_have_text("Stopped.")
    assert engine.freed.wait(10)
    assert text.text_content() == "Hello, "
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "true")


def test_markup_in_the_output_stays_text(visit, serve, answers):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>\n<a href='javascript:alert(3)'>&amp;</a>"
    page = visit(serve(answers(hostile)).url)
    press(page, "Write")
    expect(status(page)).to_have_text(DONE)
    assert page.locator("#text").text_content() == hostile
    press(page, "Race plain decoding")
    expect(page.locator("#verdict")).to_contain_text("equal")
    press(page, "To the end")
    assert page.locator("#plain .text").text_content() == hostile
    for element in ("img", "script:not([src='page/page.js'])", "main a"):
        expect(page.locator(element)).to_have_count(0)


def test_a_race_says_that_the_texts_are_equal(visit, serve, answers):
    engine = answers(pause=0.02)
    page = visit(serve(engine).url)
    press(page, "Race plain decoding")
    expect(page.locator("#verdict")).to_contain_text("Both texts are equal, token for token (22 tokens).")
    plain, drafted = engine.requests
    assert (plain.max_nodes, drafted.max_nodes) == (0, None)
    assert (plain.prompt, plain.params) == (drafted.prompt, drafted.params)
    assert "" != plain.cache_salt != drafted.cache_salt != ""
    # 22 rounds against 10 of 20 ms each
    expect(page.locator("#verdict")).to_have_text(re.compile(r"was (?!1\.00)\d+\.\d\d times as fast"))
    for lane, tau in (("plain", "1.00"), ("speculative", "2.20")):
        expect(page.locator(f"#{lane} .lane-meter")).to_contain_text(f"τ {tau}")
        expect(page.locator(f"#{lane} .text")).to_have_text(TEXT)
    expect(page.locator("#plain .token:not(.own)")).to_have_count(0)
    expect(page.locator("#speculative .token.drafted")).to_have_count(12)
    press(page, "Replay")
    press(page, "To the end")
    assert page.locator("#plain .text").text_content() == TEXT
    # each bar is as long as its lane took, the slower one full
    expect(page.locator("#plain progress")).to_have_js_property("value", 1)
    expect(page.locator("#speculative progress")).not_to_have_js_property("value", 1)


def test_a_race_says_where_texts_differ(visit, serve, answers):
    page = visit(serve(answers(plain="Hello, world")).url, reduced_motion="reduce")
    press(page, "Race plain decoding")
    # "H", "e", "ll", "o", ",", " ", "w", then "o" and not "ö"
    expect(page.locator("#verdict")).to_contain_text("The texts differ from token 8 on.")
    # no replay for who wants no motion: the end is there at once
    assert page.locator("#plain .text").text_content() == "Hello, world"


def test_a_race_can_be_stopped(visit, serve, canned):
    engine = canned.scripted(lambda request: [*canned.rounds(TEXT)[:3], None])
    page = visit(serve(engine).url)
    press(page, "Race plain decoding")
    expect(page.locator("#plain .token")).to_have_count(6)
    expect(page.locator("#verdict")).to_have_text("Measuring …")
    expect(page.locator("#replay")).to_be_hidden()
    press(page, "Stop")
    expect(page.locator("#verdict")).to_have_text("This race was not finished.")
    expect(status(page)).to_have_text("Stopped.")
    assert engine.freed.wait(10)
    assert len(engine.requests) == 1


def test_it_waits_for_the_model(visit, serve, canned):
    engine = canned.engine(TEXT)
    info, engine.info = engine.info, None
    page = visit(serve(engine).url)
    expect(status(page)).to_have_text("The model is still loading; waiting for it …")
    press(page, "Write")
    expect(status(page)).to_have_text("The model is still loading; waiting for it …")
    assert engine.requests == []
    engine.info = info
    expect(status(page)).to_have_text(DONE)
    assert page.locator("#text").text_content() == TEXT


def test_an_engine_that_ended_is_told(visit, serve, canned):
    engine = canned.engine()
    engine.alive = False
    page = visit(serve(engine).url, expected=["503"])
    expect(page.get_by_role("alert")).to_have_text("The engine has ended; the server must be restarted.")


def test_errors_are_shown_in_the_servers_words(visit, serve, canned):
    engine = canned.scripted(lambda request: [*canned.rounds(TEXT)[:2], canned.failure("out of pages")])
    page = visit(serve(engine).url, expected=["400"])
    expect(status(page)).to_have_text("Ready.")
    page.get_by_label("Prompt").fill("x" * 600)
    press(page, "Write")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The context holds 512 tokens")
    page.get_by_label("Prompt").fill("hi")
    press(page, "Write")
    expect(alert).to_have_text("The engine failed: out of pages")
    assert page.locator("#text").text_content() == "Hello"


def test_a_target_without_a_chat_template_continues_the_prompt(visit, serve, answers, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    engine = answers()
    page = visit(serve(engine).url, expected=["400"])
    page.get_by_label("Prompt").fill("Once")
    press(page, "Write")
    expect(status(page)).to_have_text(DONE)
    assert engine.requests[0].prompt == tokenizer.encode("Once")


@pytest.mark.parametrize("guard", ["none", "all"])
def test_a_key_is_asked_for_and_kept_in_memory_only(visit, serve, answers, guard):
    page = visit(serve(answers(), api_keys=("secret",), guard=guard).url, expected=["401"])
    key = page.get_by_label("This server asks for an API key")
    expect(key).to_be_focused()
    expect(page.locator("#problem")).to_be_hidden()
    key.fill("guess")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server did not accept this key.")
    expect(key).to_be_focused()
    key.fill("secret")
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text("Ready.")
    expect(key).to_be_hidden()
    press(page, "Write")
    expect(status(page)).to_have_text(DONE)
    assert page.context.storage_state() == {"cookies": [], "origins": []}
    page.reload()
    expect(key).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
def test_it_fits_its_window(visit, serve, answers, width, scheme):
    size = {"width": width, "height": 700}
    page = visit(serve(answers(TEXT * 8 + "x" * 200)).url, viewport=size, color_scheme=scheme, reduced_motion="reduce")
    press(page, "Write")
    expect(status(page)).to_have_text(DONE)
    press(page, "Race plain decoding")
    expect(page.locator("#verdict")).to_contain_text("equal")
    metrics = page.context.new_cdp_session(page).send("Page.getLayoutMetrics")
    assert metrics["cssContentSize"]["width"] == width
    page.locator("#speed").evaluate("place => { place.textContent = '12345.6'; }")
    number, line = (page.locator(place).bounding_box() for place in ("#speed", "#speed-line"))
    assert number["x"] + number["width"] <= line["x"]
    assert line["width"] > 10
