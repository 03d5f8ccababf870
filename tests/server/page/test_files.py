"""The live page's files: what is served, to whom, and what they may do.  How they behave: test_browser.py."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redraft.server import live_page
from redraft.server.app import create_app
from redraft.server.cli import app as command
from redraft.server.engine.types import RedraftError
from redraft.server.settings import ServerSettings

FILES = Path(live_page.__file__).parent / "page"


class Elements(HTMLParser):
    """Start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    return Elements((FILES / "index.html").read_text()).found


def test_the_page_and_its_files_are_served(serve, canned):
    server = serve(canned.engine())
    assert set(live_page.PATHS) == {
        "/",
        *(f"/page/{file.name}" for file in FILES.iterdir() if file.name != "index.html"),
    }
    for path, name in live_page.PATHS.items():
        reply = server.http.get(path)
        assert reply.content == (FILES / name).read_bytes()
        kind = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
        assert reply.headers["content-type"].split(";")[0] == kind[Path(name).suffix]
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy.pop("default-src") == policy.pop("form-action") == policy.pop("frame-ancestors") == "'none'"
        assert {policy.pop(f"{kind}-src") for kind in ("script", "style", "img", "connect")} == {"'self'"}
        assert policy == {"base-uri": "'none'", "require-trusted-types-for": "'script'", "trusted-types": "'none'"}
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_nothing_else_can_be_asked_for(serve, canned):
    server = serve(canned.engine())
    for path in ["/page", "/page/", "/page/index.html", "/page/x.js", "/page/../app.py", "/page/%2e%2e/app.py",
                 "/page//page.js", "/page.js", "/index.html", "/page/page.js/"]:  # fmt: skip
        reply = server.http.get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert server.http.post("/").status_code == 405
    assert server.http.head("/").status_code == 200
    assert not any(path == "/" or path.startswith("/page") for path in server.http.get("/openapi.json").json()["paths"])


def test_the_page_needs_no_key_and_opens_nothing(serve, canned):
    server = serve(canned.engine(), api_keys=("secret",))
    for path in live_page.PATHS:
        assert server.http.get(path).status_code == 200
    for path in ["/v1/models", "/page/x.js", "/page/", "/docs"]:
        assert server.http.get(path).status_code == 401


def test_without_the_page_there_is_none(tokenizer, canned):
    for keys in ((), ("secret",)):
        app = create_app(canned.engine(), tokenizer, ServerSettings("toy", api_keys=keys, page=False))
        assert not {getattr(route, "path", None) for route in app.routes} & set(live_page.PATHS)


@pytest.mark.parametrize(("words", "served"), [([], True), (["--page"], True), (["--no-page"], False)])
def test_the_switch_reaches_the_server(monkeypatch: pytest.MonkeyPatch, words: list[str], served: bool) -> None:
    seen: list[Any] = []

    def start(config: object, settings: ServerSettings) -> None:
        seen.append(settings.page)
        raise RedraftError("seen")

    monkeypatch.setattr("redraft.server.launch.serve", start)
    monkeypatch.setattr("redraft.server.cli.engine_config", lambda context: type("Config", (), {"target_name": "toy"}))
    assert CliRunner().invoke(command, ["serve", "--port", "0", *words]).stderr == "redraft: seen\n"
    assert seen == [served]


def test_everything_comes_from_here(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    sources = [value for _, attributes in elements for name, value in attributes.items() if name in ("src", "href")]
    assert set(sources) == {f"page/{name}" for name in ("icon.svg", "page.css", "rounds.css", "page.js")}
    for file in FILES.iterdir():
        text = file.read_text()
        hosts = set(re.findall(r"https?://[^\s\"'/]+", text))
        assert hosts <= {"http://www.w3.org"}, "names of XML, which nobody fetches"
        assert not re.search(r"(inner|outer|insertAdjacent)HTML|document\.write|\beval\(|localStorage|cookie", text)
        assert len(text.splitlines()) < 300
        for module in re.findall(r'from "\./(.*)"', text):
            assert (FILES / module).is_file()


def test_nothing_is_inline(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    assert not any(name == "style" or name.startswith("on") for _, attributes in elements for name in attributes)
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert scripts == [{"type": "module", "src": "page/page.js"}]
    assert "style" not in {tag for tag, _ in elements}


def test_every_control_has_a_name(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    html = (FILES / "index.html").read_text()
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label" and "for" in attributes}
    wrapped = set(re.findall(r"<label>[^<]+<input id=\"(\w+)\"", html))
    controls = {attributes["id"] for tag, attributes in elements if tag in ("input", "textarea")}
    assert controls == labelled | wrapped
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [value for _, a in elements for n, value in a.items() if n in ("aria-labelledby", "aria-describedby")]
    assert set(named) <= set(ids)


PAIRS = [
    ("ink", "paper"), ("ink", "raised"), ("soft", "paper"), ("soft", "raised"), ("drafted", "drafted-back"),
    ("corrected", "corrected-back"), ("on-accent", "accent"),
]  # fmt: skip
BOUNDS = [("accent", "paper"), ("soft", "paper"), ("drafted-line", "paper")]
"""Of what is drawn rather than written: outlines, lines, bars."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_can_be_told_apart(dark: bool) -> None:
    css = (FILES / "page.css").read_text()
    light, _, rest = css.partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", light))
    if dark:
        changed = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", rest))
        assert changed.keys() == colours.keys()
        colours = changed
    for pairs, least in ((PAIRS, 4.5), (BOUNDS, 3.0)):
        for front, back in pairs:
            bright = sorted((luminance(colours[front]), luminance(colours[back])))
            assert (bright[1] + 0.05) / (bright[0] + 0.05) >= least, (front, back)


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
