"""The documents hold together: code says what it is, links lead somewhere, the options' table is the command's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from redraft.server.cli import app
from redraft.server.replies_chat import ChatChunk

LANGUAGES = {"sh", "python", "text"}


def test_code_says_what_it_is(pages):
    for page in pages:
        for block in page.blocks:
            assert block.type == "fence", f"{page.name}: indented code is not seen as commands; fence it"
            assert block.info in LANGUAGES, f"{page.name}: {block.content[:60]}"


def test_no_command_hides_in_other_code(pages, commands):
    programs = {command.words[0] for command in commands if command.language == "sh"}
    assert {"redraft", "make", "curl", "docker", "python"} <= programs
    for page in pages:
        for block in page.blocks:
            if block.info == "text":
                assert not [line for line in block.content.splitlines() if line.split(" ")[0] in programs], page.name


def links(pages: list[Any]) -> Iterator[tuple[str, str, str]]:
    """Page, path and anchor of every link that leads to a file."""
    for page in pages:
        for link in page.links:
            if not link.startswith(("http://", "https://")):
                path, _, anchor = link.partition("#")
                yield page.name, path, anchor


def test_links_lead_somewhere(pages, repository):
    anchors = {
        (repository / page.name).resolve(): {
            re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in page.headings
        }
        for page in pages
    }
    for name, path, anchor in links(pages):
        target = ((repository / name).parent / path).resolve() if path else (repository / name).resolve()
        assert target.exists(), f"{name}: {path}"
        assert not anchor or anchor in anchors[target], f"{name}: {path}#{anchor}"


def test_the_example_of_a_stream_is_what_streams_are_made_of(pages):
    (block,) = [block for page in pages for block in page.blocks if block.info == "text" and "data: " in block.content]
    events = [event.removeprefix("data: ") for event in block.content.split("\n\n")]
    assert events[-1] == "[DONE]\n"
    whole = json.loads(events[0])
    for event in events[:-1]:
        # the first one has what the others leave out
        chunk = whole | json.loads(event.replace("{…,", "{"))
        read = ChatChunk.model_validate(chunk)
        assert read.model_dump(mode="json", exclude_unset=True) == chunk


@pytest.fixture(scope="module")
def serve():
    """Parameters of ``redraft serve`` by option."""
    command: Any = typer.main.get_command(app)
    return {parameter.opts[0]: parameter for parameter in command.commands["serve"].params}


@pytest.fixture(scope="module")
def table(repository):
    """Cells of the options' table: options, variables, default."""
    text = (repository / "docs/options.md").read_text()
    return re.findall(r"^\| (`--[^|]+) \| (`[^|]+) \| ([^|]*) \|", text, re.MULTILINE)


def test_the_table_has_every_option_with_its_variable(table, serve):
    found = {}
    for options, variables, _ in table:
        names = [name for name in re.findall(r"`(--[a-z-]+)`", options) if not name.startswith("--no-")]
        found |= zip(names, re.findall(r"`([A-Z_]+)`", variables), strict=True)
    assert found == {name: parameter.envvar for name, parameter in serve.items()}


def test_defaults_in_the_table_are_those_of_the_command(table, serve):
    told = {"on": True, "off": False, "none": None}
    # what the engine settles where nothing is asked for
    settled = {"by target", "what fits", "by device", "what the draft proposes", "the target's", "by terminal"}
    for options, _, defaults in table:
        names = [name for name in re.findall(r"`(--[a-z-]+)`", options) if not name.startswith("--no-")]
        for name, default in zip(names, defaults.split(", "), strict=True):
            wanted = serve[name].default
            if default in settled:
                assert wanted is None, name
            elif default in told:
                assert wanted is told[default], name
            elif default.startswith("`"):
                assert f"`{wanted}`" == default, name
            else:
                assert wanted == float(default), name
