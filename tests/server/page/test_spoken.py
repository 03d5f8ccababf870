"""The live page without eyes: what Chromium tells assistive technology, and what is announced when.

Orca says what live regions get as it comes and knows nothing of aria-busy, so a text that grows is in none of them; it
also says which option of a list gets selected.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
TEXT = "Hello, wörld! 日本語"
DONE = re.compile("^Done: ")
RECORD = """() => {
  window.announced = [];
  const live = document.querySelectorAll("[aria-live], [role=status], [role=alert]");
  const hear = (place) => new MutationObserver(() => announced.push(place.textContent))
    .observe(place, { childList: true, characterData: true, subtree: true });
  live.forEach(hear);
}"""
PAGE = """
- banner:
  - heading "Redraft" [level=1]
  - paragraph: toy, drafted by canned-1
- main:
  - form "What to write":
    - textbox "Prompt"
    - spinbutton "Temperature"
    - spinbutton "Most tokens"
    - spinbutton "Seed"
    - button "Write"
    - button "Race plain decoding"
    - button "Stop" [disabled]
  - status: /^Done/
  - region "Text":
    - heading "Text" [level=2]
    - list "Colours":
      - listitem: drafted and accepted
      - listitem: corrected by the target
      - listitem: the target’s own, nothing drafted there
    - text: The rounds further down say in words how each token came to be.
    - term: tokens per second, prefill aside
    - definition: /\\d/
    - term: τ, tokens per round
    - definition: "2.20"
    - term: of the text was drafted
    - definition: 55 %
    - term: tokens
    - definition: "22"
    - region "Answer": Hello, wörld! 日本語
  - region "Rounds":
    - heading "Rounds" [level=2]
    - listbox "Rounds":
      - 'option "Round 1, 1 token, 0 of 2 drafted accepted: H : corrected by the target;"'
      - 'option "Round 2, 3 tokens, 2 of 4 drafted accepted: e , ll : drafted; o : the target’s own;" [selected]'
      - 'option "Round 3, 2 tokens, 1 of 3 drafted accepted: , : drafted; space : the target’s own;"'
    - figure /^Round 2, 3 tokens, 2 of 4 drafted accepted, \\d+\\.\\d\\d s after the start$/:
      - list:
        - listitem:
          - text: H
          - list:
            - listitem:
              - text: e , accepted , score 0.50
              - list:
                - listitem:
                  - text: ll , accepted , score 0.50
                  - list:
                    - listitem: o , the target’s own
            - listitem:
              - text: b , rejected , score 0.25
              - list:
                - listitem: c , rejected , score 0.13
"""


def written(page: Any) -> None:
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator("#status")).to_have_text(DONE)


def live(page: Any) -> dict[str, str]:
    """Politeness by role and name of what Chromium has as a live region, and of all that is in one."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    found = {}
    for node in nodes:
        politeness = [each["value"]["value"] for each in node.get("properties", []) if each["name"] == "live"]
        if politeness:
            found[f"{node['role']['value']} {node.get('name', {}).get('value', '')}".strip()] = politeness[0]
    return found


def test_everything_has_its_place_and_name(visit, serve, answers):
    page = visit(serve(answers()).url)
    written(page)
    page.locator("#rounds .round").nth(1).focus()
    expect(page.locator("body")).to_match_aria_snapshot(PAGE)


def test_a_text_is_announced_once_and_whole(visit, serve, answers):
    page = visit(serve(answers(pause=0.02)).url)
    expect(page.locator("#status")).to_have_text("Ready.")
    page.evaluate(RECORD)
    written(page)
    expect(page.locator("#spoken")).to_be_empty()
    announced = page.evaluate("announced")
    assert announced[0] == "Writing …"
    assert announced[1].startswith("Done: 22 tokens")
    assert announced[2:] == [TEXT, ""]


def test_a_text_that_is_stopped_is_not_announced(visit, serve, canned):
    engine = canned.scripted(lambda request: [*canned.rounds(TEXT)[:3], None])
    page = visit(serve(engine).url)
    expect(page.locator("#status")).to_have_text("Ready.")
    page.evaluate(RECORD)
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator("#text .token")).to_have_count(6)
    assert all("Answer" not in name and "Hell" not in name for name in live(page))
    rounds = page.get_by_role("listbox", name="Rounds")
    expect(rounds.get_by_role("option", selected=True)).to_have_count(0)
    rounds.get_by_role("option").last.focus()
    expect(rounds.get_by_role("option", selected=True)).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    assert page.evaluate("announced") == ["Writing …", "Stopped."]


def test_status_is_polite_and_an_error_is_not(visit, serve, answers):
    page = visit(serve(answers()).url, expected=["400"])
    expect(page.locator("#status")).to_have_text("Ready.")
    assert live(page)["status"] == "polite"
    page.get_by_label("Prompt").fill("x" * 600)
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The context holds 512 tokens")
    assert live(page)["alert"] == "assertive"


def test_a_race_announces_its_outcome_and_no_percents(visit, serve, answers):
    page = visit(serve(answers(pause=0.02)).url)
    expect(page.locator("#status")).to_have_text("Ready.")
    page.evaluate(RECORD)
    page.get_by_role("button", name="Race plain decoding").click()
    expect(page.locator("#verdict")).to_contain_text("equal")
    expect(page.locator("#status")).to_have_text("Both are measured.")
    announced = page.evaluate("announced")
    known = {"1 of 2: plain decoding …", "Measuring …", "2 of 2: speculative decoding …", "Both are measured."}
    assert known < set(announced)
    assert len(announced) == 5
    expect(page.get_by_role("progressbar")).to_have_count(0)
    expect(page.get_by_role("article", name="Speculative")).to_contain_text("τ 2.20")


def test_kinds_differ_by_more_than_colour(visit, serve, answers):
    page = visit(serve(answers()).url)
    script = "each => { const s = getComputedStyle(each); return [s.boxShadow !== 'none', s.textDecorationStyle]; }"
    lines = [page.locator(f".legend .{kind}").evaluate(script) for kind in ("drafted", "corrected", "own")]
    assert lines == [[True, "solid"], [False, "dotted"], [False, "solid"]]
    written(page)
    first = [page.locator(f"#text .{kind}").first.evaluate(script) for kind in ("drafted", "corrected", "own")]
    chips = [page.locator(f"#rounds .{kind}").first.evaluate(script) for kind in ("drafted", "corrected", "own")]
    assert first == chips == lines


TOKENS = [
    ("a b", "a b"),
    (" ", "␣space"),
    ("\n\n    ", "↵↵    2 line breaks, 4 spaces"),
    (";\n", ";↵; line break"),
    ("\u202eevil", "U+202Eevil"),
    ("\u200d", "U+200D"),
    ("👩\u200d💻", "👩\u200d💻"),
    ("\u0301", "◌\u0301"),
    ("\x00", "U+0000"),
]
"""And what stands in a chip: as it is seen and, where that is no word, as it is said."""


def test_tokens_are_named_where_they_would_not_show(visit, serve, answers):
    page = visit(serve(answers()).url)
    expect(page.locator("#status")).to_have_text("Ready.")
    script = """async (texts) => {
      const { chip } = await import("/page/words.js");
      return texts.map((text) => chip({ text, id: 7 }, "own").textContent);
    }"""
    assert page.evaluate(script, [text for text, _ in TOKENS]) == [shown for _, shown in TOKENS]


def test_every_line_has_its_own_direction(visit, serve, answers):
    """What turns letters around ends with its line, and what is written from the right begins there."""
    page = visit(serve(answers("one \u202etwo\nthree\nمرحبا")).url)
    written(page)
    script = """place => {
      const range = document.createRange();
      const at = (line) => place.textContent.split("\\n").slice(0, line).join("\\n").length + (line ? 1 : 0);
      const token = (offset) => {
        for (const each of place.children) {
          if (offset < each.textContent.length) return each;
          offset -= each.textContent.length;
        }
      };
      const { left, right } = place.getBoundingClientRect();
      return [0, 1, 2].map((line) => {
        const box = token(at(line)).getBoundingClientRect();
        return [Math.abs(box.left - left) < 1, Math.abs(box.right - right) < 1];
      });
    }"""
    assert page.locator("#text").evaluate(script) == [[True, False], [True, False], [False, True]]
