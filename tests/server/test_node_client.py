"""The official client under Node, streaming and not, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from redraft.server.chat_template import ChatTemplate
from redraft.server.text import TextTokenizer

TEXT = "Hello, wörld! 日本語"
CALL = '{"name": "add", "arguments": {"a": "é"}}'
TEMPLATE = """{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}<tool_call>{% endif %}"""


@pytest.fixture(scope="module")
def folder(repository):
    """The client's folder; skips where Node or the package is missing."""
    found = repository / "tests" / "server" / "node"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (found / "node_modules" / "openai").is_dir():
        pytest.skip("the npm package openai is not installed: npm ci --prefix tests/server/node")
    return found


def test_the_official_client(folder, serve, canned, tokenizer):
    def answer(request):
        asked = tokenizer.decode(request.prompt)
        return canned.rounds(f"<tool_call>{CALL}</tool_call>" if "<tool_call>" in asked else TEXT)

    server = serve(canned.scripted(answer), TextTokenizer(tokenizer._tokenizer, ChatTemplate(TEMPLATE, {})))
    run = subprocess.run(
        ["node", "client.mjs", f"{server.url}/v1", "toy"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    assert (got["text"]["text"], got["text"]["finish_reason"]) == (TEXT, "stop")
    assert (got["chat"]["message"]["content"], got["chat"]["finish_reason"]) == (TEXT, "stop")
    assert got["textStream"] == got["chatStream"] == TEXT
    assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (2, 22)
    for choice in (got["called"], got["calledStream"]):
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        (call,) = choice["message"]["tool_calls"]
        assert call["type"] == "function"
        assert (call["function"]["name"], call["function"]["arguments"]) == ("add", '{"a": "é"}')
    assert got["again"] == "tool_calls"
    assert got["models"] == ["toy"]
    assert got["unknownModel"] == ["NotFoundError", 404, "model_not_found", "model"]
    assert got["badValue"] == ["BadRequestError", 400, "invalid_value", "temperature"]
    assert got["badStream"] == ["BadRequestError", 400, "invalid_value", "top_p"]
