"""The documents' commands, and for each the rule of ``commands.toml`` that says how it is tried.

A command belongs to the rule with the longest ``begins`` that it begins with, settings of variables before it left out.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "deploy/README.md")
MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, slots=True)
class Rule:
    """How commands that begin alike are tried: exactly one of ``way`` and ``why``."""

    begins: str
    way: str | None = None
    """``ask``: while a tiny target is served.  ``quick``, ``slow``: to its end.  ``serve``: until it serves."""
    why: str | None = None
    """Why it cannot be run."""
    add: str = ""
    """Behind the command, which makes it small."""
    copy: bool = False
    """In a copy of the repository instead of a folder with prompts, texts and a draft."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command, or one program in Python."""

    page: str
    line: int
    text: str
    rule: Rule | None
    language: str = "sh"

    @property
    def words(self) -> list[str]:
        """As the shell reads them, without settings of variables in front and comments behind."""
        return shlex.split(bare(self.text), comments=True)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


@dataclass(frozen=True, slots=True)
class Page:
    """A document and what of it is of interest here."""

    name: str
    blocks: list[Token] = field(default_factory=list)
    """Fenced and indented code."""
    spans: list[str] = field(default_factory=list)
    """Code within text, on one line each."""
    links: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)


def bare(text: str) -> str:
    """``text`` without settings of variables in front."""
    return re.sub(r"^(?:[A-Z_]+=\S* )+", "", text)


def shell_commands(block: str) -> list[tuple[int, str]]:
    """Commands of a block with the line that they begin in; quotes and backslashes carry one over several."""
    found: list[tuple[int, str]] = []
    begun = ""
    for number, line in enumerate(block.splitlines()):
        begun += line + "\n"
        try:
            shlex.split(begun, comments=True)
        except ValueError:  # a quote is open
            continue
        if not line.endswith("\\"):
            if begun.strip():
                found.append((number - begun.count("\n") + 1, begun.strip()))
            begun = ""
    assert not begun, f"a quote is not closed: {begun}"
    return found


def read_page(path: Path) -> Page:
    """The document in ``path``."""
    page = Page(path.relative_to(ROOT).as_posix())
    for token in MARKDOWN.parse(path.read_text()):
        if token.type in ("fence", "code_block"):
            page.blocks.append(token)
        inner = token.children or []
        page.spans.extend(" ".join(part.content.split()) for part in inner if part.type == "code_inline")
        page.links.extend(str(part.attrs["href"]) for part in inner if part.type == "link_open")
        page.links.extend(str(part.attrs["src"]) for part in inner if part.type == "image")
    page.headings.extend(re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE))
    return page


def read_rules() -> list[Rule]:
    """Longest first."""
    rows = tomllib.loads((Path(__file__).parent / "commands.toml").read_text())["rule"]
    return sorted((Rule(**row) for row in rows), key=lambda rule: -len(rule.begins))


def read_commands(pages: list[Page], rules: list[Rule]) -> list[Command]:
    """In the order of the pages."""

    def command(page: Page, line: int, text: str, language: str) -> Command:
        rule = next((rule for rule in rules if bare(text).startswith(rule.begins)), None)
        return Command(page.name, line, text, rule, language)

    found = []
    for page in pages:
        for block in page.blocks:
            first = (block.map or [0])[0] + 2
            if block.info == "sh":
                found += [command(page, first + line, text, "sh") for line, text in shell_commands(block.content)]
            elif block.info == "python":
                found.append(command(page, first, block.content, "python"))
    return found


RULES = read_rules()
READ = [read_page(path) for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
COMMANDS = read_commands(READ, RULES)
PARTS = {"quick_commands": ("ask", "quick"), "slow_commands": ("slow", "serve")}


@pytest.fixture(scope="session")
def pages() -> list[Page]:
    """All documents."""
    return READ


@pytest.fixture(scope="session")
def rules() -> list[Rule]:
    """What ``commands.toml`` says."""
    return RULES


@pytest.fixture(scope="session")
def commands() -> list[Command]:
    """All commands of all documents."""
    return COMMANDS


def pytest_generate_tests(metafunc: Any) -> None:
    """Tests that take ``command`` get each command, those that take one of ``PARTS`` that part of a page."""
    if "command" in metafunc.fixturenames:
        metafunc.parametrize("command", COMMANDS, ids=str)
    for part in PARTS.keys() & set(metafunc.fixturenames):
        taken = [one for one in COMMANDS if one.rule is not None and one.rule.way in PARTS[part]]
        names = list(dict.fromkeys(one.page for one in taken))
        metafunc.parametrize(part, [[one for one in taken if one.page == name] for name in names], ids=names)
