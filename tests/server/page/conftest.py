"""Debian's Chromium on the live page, and answers that come with trees."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from redraft.server.engine.types import Request, RoundOutput, TreeNode

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WRONG = 65
"""A token that no answer of these tests has at a round's beginning: what the draft gets wrong."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for a file of tests: while it is there, its thread can run no event loop of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here (Debian: apt-get install chromium)")
    # a busy machine is slow, and no test is to fail for that
    sync_api.expect.set_options(timeout=20_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, and all that it said and asked for."""

    page: Any
    url: str
    expected: Sequence[str]
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def check(self) -> None:
        """It asked no other host for anything, and nothing went wrong but what was expected to."""
        assert self.asked
        assert [url for url in self.asked if not url.startswith(f"{self.url}/")] == []
        assert [text for text in self.said if not any(re.search(known, text) for known in self.expected)] == []


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server; ``expected``: patterns of console messages that are right."""
    visits: list[Visit] = []

    def open_page(url: str, expected: Sequence[str] = (), **options: Any) -> Any:
        page = browser.new_page(**options)
        page.set_default_timeout(20_000)
        visits.append(made := Visit(page, url, expected))
        page.on("console", lambda message: made.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: made.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: made.said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: made.asked.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for each in visits:
        each.page.close()
        each.check()


@pytest.fixture
def answers(canned: Any) -> Callable[..., Any]:
    """Engines whose rounds verify what they commit, and one wrong token beside it; plain requests draft nothing."""

    def engine(text: str = "Hello, wörld! 日本語", plain: str | None = None, pause: float = 0.0) -> Any:
        def script(request: Request) -> list[RoundOutput | None]:
            if request.max_nodes == 0:
                outputs = canned.rounds(text if plain is None else plain, sizes=(1,), drafted=0)
                return [replace(output, accepted=0) for output in outputs]
            outputs = canned.rounds(text)
            return [replace(output, tree=tree(output)) if request.show_tree else output for output in outputs]

        made = canned.scripted(script)
        made.pause = pause
        return made

    return engine


def tree(output: RoundOutput) -> tuple[TreeNode, ...]:
    """The accepted path and, at the root, a wrong node with a child."""
    path = [TreeNode(token, i - 1, 0.5, True) for i, token in enumerate(output.tokens[: output.accepted])]
    return (*path, TreeNode(WRONG, -1, 0.25, False), TreeNode(WRONG + 1, len(path), 0.125, False))
