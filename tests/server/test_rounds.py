"""``include_rounds``: what each round committed and verified, in chunks and in whole replies."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from redraft.server.engine.types import TreeNode
from redraft.server.rounds import RoundWriter

TEXT = "Hello, wörld! 日本語"
BODIES = {
    "completions": {"model": "toy", "prompt": "hi"},
    "chat/completions": {"model": "toy", "messages": [{"role": "user", "content": "hi"}]},
}


@pytest.fixture
def server(serve, canned):
    """Verifies the tokens it commits, and one wrong one beside the first, for requests that ask."""

    def script(request):
        return [replace(output, tree=tree(output)) if request.show_tree else output for output in canned.rounds(TEXT)]

    def tree(output):
        path = [TreeNode(token, i - 1, 0.5, True) for i, token in enumerate(output.tokens[: output.accepted])]
        return (*path, TreeNode(65, -1, 0.123456, False))

    return serve(canned.scripted(script))


def streamed(server, path, body):
    """The chunks of a stream."""
    reply = server.http.post(f"/v1/{path}", json={**body, "stream": True})
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", BODIES)
def test_rounds_are_what_the_reply_came_of(server, path):
    body = {**BODIES[path], "include_rounds": True}
    whole = server.http.post(f"/v1/{path}", json=body).json()
    rounds = whole["rounds"]
    choice = whole["choices"][0]
    assert "".join(token["text"] for each in rounds for token in each["tokens"]) == TEXT
    assert (choice["text"] if "text" in choice else choice["message"]["content"]) == TEXT
    assert sum(len(each["tokens"]) for each in rounds) == whole["usage"]["completion_tokens"]
    assert [len(each["tokens"]) for each in rounds[:5]] == [1, 3, 2, 4, 1]
    assert [token["drafted"] for token in rounds[1]["tokens"]] == [True, True, False]
    nodes = rounds[1]["nodes"]
    assert [node["parent"] for node in nodes] == [None, 0, None]
    assert [node["accepted"] for node in nodes] == [True, True, False]
    assert [node["id"] for node in nodes[:2]] == [token["id"] for token in rounds[1]["tokens"][:2]]
    assert nodes[2]["score"] == 0.1235
    seconds = [each["seconds"] for each in rounds]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < 20
    chunks = streamed(server, path, body)
    shown = [each for chunk in chunks for each in chunk.get("rounds", ())]
    assert [{**each, "seconds": 0} for each in shown] == [{**each, "seconds": 0} for each in rounds]
    # a round whose text is kept back has its chunk, too: the first two bytes of a character are one token
    assert all(chunk["rounds"] for chunk in chunks if "rounds" in chunk)


@pytest.mark.parametrize("path", BODIES)
def test_nothing_is_added_unless_asked(server, path):
    for extra in ({}, {"include_rounds": False}, {"include_rounds": None}):
        body = {**BODIES[path], **extra}
        assert "rounds" not in server.http.post(f"/v1/{path}", json=body).json()
        assert not any("rounds" in chunk for chunk in streamed(server, path, body))
    assert not any(request.show_tree for request in server.service.engine.requests)


def test_special_tokens_show_in_rounds_as_in_the_text(serve, canned):
    (end,) = canned.tokenizer.encode("<|end|>")

    def script(request):
        first, *others = canned.rounds("ab")
        tree = (TreeNode(end, -1, 0.5, False),)
        return [replace(first, tree=tree, drafted=1, accepted=0, tokens=(end,)), *others]

    server = serve(canned.scripted(script))
    for skipped, text in ((True, ""), (False, "<|end|>")):
        asked = {"include_rounds": True, "include_stop_str_in_output": True, "skip_special_tokens": skipped}
        reply = server.http.post("/v1/completions", json={**BODIES["completions"], **asked}).json()
        assert reply["choices"][0]["text"].startswith(text + "b")
        assert reply["rounds"][0]["tokens"][0]["text"] == reply["rounds"][0]["nodes"][0]["text"] == text


def test_a_stop_string_ends_the_last_round(server):
    body = {**BODIES["completions"], "include_rounds": True, "stop": "lo,"}
    reply = server.http.post("/v1/completions", json=body).json()
    assert reply["choices"][0]["text"] == "Hel"
    assert "".join(token["text"] for each in reply["rounds"] for token in each["tokens"]) == "Hello,"
    assert sum(len(each["tokens"]) for each in reply["rounds"]) == reply["usage"]["completion_tokens"]


def test_rounds_are_of_one_choice(server):
    for path, extra in [
        ("completions", {"n": 2}),
        ("chat/completions", {"n": 2}),
        ("completions", {"prompt": ["a", "b"]}),
        ("completions", {"include_rounds": "yes"}),
    ]:
        reply = server.http.post(f"/v1/{path}", json={**BODIES[path], "include_rounds": True, **extra})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "include_rounds")


def test_a_node_reads_as_it_would_behind_its_parent(canned):
    class Stripping:
        """Drops a text's first space, as decoders of SentencePiece do."""

        def decode(self, ids):
            return "".join([" a", " b", " c"][token] for token in ids).removeprefix(" ")

    output = replace(canned.rounds("x")[0], tokens=(1,), tree=(TreeNode(1, -1, 1, True), TreeNode(2, 0, 1, False)))
    assert [node.text for node in RoundWriter(Stripping(), 0).write(output, ["b"], 1.0).nodes] == [" b", " c"]
    # the first two bytes of a character, then its third: alone neither is one
    first, second = canned.tokenizer.encode("日")
    output = replace(output, tokens=(first,), tree=(TreeNode(first, -1, 1, True), TreeNode(second, 0, 1, True)))
    assert [node.text for node in RoundWriter(canned.tokenizer, 0).write(output, [""], 1.0).nodes] == ["�", "日"]
