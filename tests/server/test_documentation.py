"""`/openapi.json` says everything, and `/docs` shows it without another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from pydantic import TypeAdapter

from redraft.server.replies import Completion, Health, Model, Version
from redraft.server.replies_chat import ChatCompletion
from redraft.server.schema_chat import ChatRequest
from redraft.server.schema_tokens import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from redraft.server.schemas import CompletionRequest

ENDPOINTS = {
    ("post", "/v1/completions"),
    ("post", "/v1/chat/completions"),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("get", "/health"),
    ("get", "/ready"),
    ("get", "/version"),
    ("get", "/metrics"),
}
OURS = {"speculation", "cache_salt", "include_metrics"}


@pytest.fixture(scope="module")
def schema(lasting):
    """What the server says of itself."""
    return lasting.http.get("/openapi.json").json()


def operations(schema):
    """Every operation by method and path."""
    return {(method, path): op for path, methods in schema["paths"].items() for method, op in methods.items()}


def model(schema, reference):
    """The name and schema that ``reference`` leads to."""
    name = reference.removeprefix("#/components/schemas/")
    return name, schema["components"]["schemas"][name]


def nodes(value):
    """Every object inside of ``value``, examples left out."""
    if isinstance(value, dict):
        yield value
        value = [inner for name, inner in value.items() if name not in ("example", "examples")]
    for inner in value if isinstance(value, list) else ():
        yield from nodes(inner)


def test_every_field_is_described(schema):
    for node in nodes(schema["components"]["schemas"]):
        if isinstance(node.get("properties"), dict):
            assert node.get("description"), node.get("title")
            for name, field in node["properties"].items():
                assert field.get("description"), (node["title"], name)


def test_every_endpoint_is_described(schema):
    assert set(operations(schema)) >= ENDPOINTS
    for where, operation in operations(schema).items():
        assert operation["description"], where
        assert all(response["description"] for response in operation["responses"].values()), where
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (where, parameter["name"])


def test_every_endpoint_has_an_example(schema):
    for where, operation in operations(schema).items():
        bodies = [operation["responses"]["200"], *([operation["requestBody"]] if "requestBody" in operation else [])]
        for content in [body["content"] for body in bodies]:
            kind = content.get("application/json") or content["text/plain"]
            references = [node["$ref"] for node in nodes(kind["schema"]) if "$ref" in node] if "schema" in kind else []
            described = [model(schema, reference)[1] for reference in references]
            assert "example" in kind or (described and all("example" in part for part in described)), where


def test_every_reference_leads_somewhere(schema):
    for node in nodes(schema):
        if "$ref" in node:
            model(schema, node["$ref"])


def test_requests_refuse_what_they_do_not_know(schema):
    for operation in operations(schema).values():
        for node in nodes(operation.get("requestBody", {})):
            if "$ref" in node:
                assert model(schema, node["$ref"])[1]["additionalProperties"] is False


def test_null_is_as_good_as_nothing_wherever_something_may_be_missing(schema):
    for name in ("CompletionRequest", "ChatRequest", "TokenizeText", "Message", "Tool", "Function", "StreamOptions"):
        described = schema["components"]["schemas"][name]
        for field, kinds in described["properties"].items():
            allowed = {"type": "null"} in kinds.get("anyOf", [])
            assert allowed == (field not in described.get("required", [])), (name, field)


def test_our_own_parameters_and_replies_are_there(schema):
    schemas = schema["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest"):
        assert set(schemas[name]["properties"]) >= OURS
        assert schemas[name]["properties"]["model"]["description"]
    for name in ("Completion", "ChatCompletion", "ChatChunk"):
        assert "metrics" in schemas[name]["properties"]
    for path, name in (("/v1/completions", "Completion"), ("/v1/chat/completions", "ChatChunk")):
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]
        event = content["text/event-stream"]["schema"]["properties"]["data"]
        chunk, error = event["anyOf"][0]["contentSchema"]["anyOf"]
        assert [model(schema, part["$ref"])[0] for part in (chunk, error)] == [name, "ErrorReply"]


def test_examples_are_valid(schema):
    bodies = {
        "CompletionRequest": CompletionRequest,
        "ChatRequest": ChatRequest,
        "TokenizeText": TokenizeRequest,
        "TokenizeConversation": TokenizeRequest,
        "DetokenizeRequest": DetokenizeRequest,
        "Completion": Completion,
        "ChatCompletion": ChatCompletion,
        "TokenizeReply": TokenizeReply,
        "DetokenizeReply": DetokenizeReply,
        "Model": Model,
        "Health": Health,
        "Version": Version,
    }
    for name, body in bodies.items():
        described = schema["components"]["schemas"][name]
        for example in [described["example"], *described.get("examples", [])]:
            TypeAdapter(body).validate_python(example)


class Links(HTMLParser):
    """What a page loads."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_page_comes_from_here(server):
    page = server.http.get("/docs").text
    links = Links(page).found
    assert len(links) >= 3
    for link in [*links, "/openapi.json"]:
        assert link.startswith("/")
        reply = server.http.get(link)
        assert reply.status_code == 200
        assert len(reply.content) > 1000
    assert "/openapi.json" in page
    assert not re.search(r"https?://", page)


def test_the_page_is_guarded_like_the_api(serve, canned):
    server = serve(canned.engine("ok"), api_keys=("key",))
    for path in ("/docs", "/docs/files/swagger-ui.css", "/openapi.json"):
        assert server.http.get(path).status_code == 401
        assert server.http.get(path, headers={"Authorization": "Bearer key"}).status_code == 200
