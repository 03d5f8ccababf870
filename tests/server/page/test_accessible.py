"""The live page by axe-core's rules for WCAG 2.2, levels A and AA, in every state that it has, light and dark."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = "async (tags) => (await axe.run(document, { runOnly: { type: 'tag', values: tags } }))"
TOO_SHORT = re.compile("too short|non-text characters")
"""Of a single letter axe does not say whether it can be read; the legend has the same colours in whole words."""


@pytest.fixture(scope="module")
def axe(repository: Path) -> str:
    """The library's source; skips where it is absent."""
    path = repository / "tests/server/node/node_modules/axe-core/axe.min.js"
    if not path.is_file():
        pytest.skip("the npm package axe-core is not installed: npm ci --prefix tests/server/node")
    return path.read_text()


def faults(page: Any, axe: str) -> list[str]:
    """What axe-core finds wrong, or cannot tell."""
    page.evaluate(axe)
    report = page.evaluate(RUN, RULES)
    assert len(report["passes"]) > 30
    nodes = [(rule["id"], node) for rule in report["violations"] + report["incomplete"] for node in rule["nodes"]]
    said = [(name, node["html"], [each["message"] for each in node["any"] + node["all"]]) for name, node in nodes]
    return [json.dumps(each) for each in said if not all(TOO_SHORT.search(text) for text in each[2] or ["none"])]


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def written(page: Any) -> None:
    press(page, "Write")
    expect(page.locator("#status")).to_have_text(re.compile("^Done"))


def empty(page: Any) -> None:
    """As it is opened."""


def tree(page: Any) -> None:
    """A round is looked at, and has the focus."""
    written(page)
    page.locator("#rounds .round").nth(1).focus()
    expect(page.locator("#tree-caption")).to_contain_text("Round 2,")


def race(page: Any) -> None:
    press(page, "Race plain decoding")
    expect(page.locator("#verdict")).to_contain_text("equal")
    press(page, "To the end")


def error(page: Any) -> None:
    page.get_by_label("Prompt").fill("x" * 600)
    press(page, "Write")
    expect(page.get_by_role("alert")).to_contain_text("The context holds 512 tokens")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", [empty, written, tree, race, error], ids=lambda state: state.__name__)
def test_every_state_follows_the_rules(visit, serve, answers, axe, state, scheme):
    page = visit(serve(answers()).url, expected=["400"], color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#status")).to_have_text("Ready.")
    state(page)
    assert faults(page, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_so_does_a_text_that_is_being_written(visit, serve, canned, axe, scheme):
    engine = canned.scripted(lambda request: [*canned.rounds("Hello, wörld!")[:3], None])
    page = visit(serve(engine).url, color_scheme=scheme)
    press(page, "Write")
    expect(page.locator("#text .token")).to_have_count(6)
    assert faults(page, axe) == []
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_so_does_the_form_for_a_key(visit, serve, answers, axe, scheme):
    page = visit(serve(answers(), api_keys=("secret",)).url, expected=["401"], color_scheme=scheme)
    page.get_by_label("This server asks for an API key").fill("guess")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server did not accept this key.")
    assert faults(page, axe) == []


def test_faults_are_found(visit, serve, answers, axe):
    """The page's policy keeps axe-core from nothing."""
    page = visit(serve(answers()).url)
    expect(page.locator("#status")).to_have_text("Ready.")
    page.locator("label[for=prompt]").evaluate("label => label.remove()")
    page.locator("#about").evaluate("about => { about.style.opacity = 0.6; }")
    assert {json.loads(fault)[0] for fault in faults(page, axe)} >= {"label", "color-contrast"}
