"""Every limit is in the docs with its value, and what the parser does by itself is what the docs say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pydantic_core import from_json

from redraft.server import limits
from redraft.server.cli import serve


@pytest.fixture(scope="module")
def documented(repository: Path) -> dict[str, str]:
    """First and second cell of the tables in docs/limits.md."""
    text = (repository / "docs/limits.md").read_text()
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE))


def test_every_limit_is_documented_with_its_value(documented: dict[str, str]) -> None:
    constants = {name: value for name, value in vars(limits).items() if name.isupper()}
    shown = {name: f"{value:,.0f}" for name, value in constants.items()}
    assert {name: value for name, value in documented.items() if not name.startswith("--")} == shown
    assert all(float(value) == int(value) for value in constants.values()), "else they would be shown rounded"


def test_defaults_of_options_are_as_documented(documented: dict[str, str]) -> None:
    options = {name: value for name, value in documented.items() if name.startswith("--")}
    assert len(options) == 4
    defaults = inspect.signature(serve).parameters
    for option, value in options.items():
        default = defaults[option[2:].replace("-", "_")].default
        assert value == ("none" if default is None else f"{default:g}"), option


def test_the_parser_bounds_the_depth() -> None:
    nested = "[" * limits.MAX_DEPTH + "]" * limits.MAX_DEPTH
    assert from_json(nested)
    with pytest.raises(ValueError, match="recursion limit"):
        from_json(f"[{nested}]")
