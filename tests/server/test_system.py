"""Probes, models, keys, version, documentation, and what the server process must not load."""

from __future__ import annotations

import subprocess
import sys

import pytest
import structlog

from redraft.server.engine.types import RedraftError
from redraft.server.refuse import NEUTRAL
from redraft.server.schema_chat import ChatRequest
from redraft.server.schemas import CompletionRequest

GOOD = {"model": "toy", "prompt": "hi"}


def probes(server):
    """Status of health, ready and a request."""
    paths = [server.http.get("/health"), server.http.get("/ready"), server.http.post("/v1/completions", json=GOOD)]
    return [reply.status_code for reply in paths]


def test_loading(serve, canned):
    engine = canned.engine("ok")
    info, engine.info = engine.info, None
    server = serve(engine)
    assert probes(server) == [200, 503, 503]
    assert server.http.get("/health").json() == {"status": "loading"}
    reply = server.http.post("/v1/completions", json=GOOD)
    assert (reply.json()["error"]["code"], reply.headers["retry-after"]) == ("loading", "5")
    assert server.http.get("/v1/models").status_code == 503
    assert server.http.get("/version").json()["system_fingerprint"] is None
    assert "redraft_requests_running" not in server.http.get("/metrics").text
    engine.info = info
    assert probes(server) == [200, 200, 200]


def test_draining(serve, canned):
    server = serve(canned.engine("ok"))
    server.service.draining = True
    assert probes(server) == [200, 503, 503]
    assert server.http.get("/ready").json() == {"status": "draining"}


def test_dead(serve, canned):
    server = serve(canned.engine("ok"))
    server.service.engine.alive = False
    assert probes(server) == [503, 503, 503]
    assert server.http.get("/health").json() == {"status": "dead"}


@pytest.mark.parametrize("path", ["output", "raise"])
def test_dying_during_a_request(serve, canned, path):
    secret = "TypeError: /home/of/the/operator"

    def die(request):
        server.service.engine.alive = False
        if path == "raise":
            raise RedraftError(secret)
        return [*canned.rounds("ab", sizes=(1,))[:1], canned.failure(secret)]

    server = serve(canned.scripted(die))
    with structlog.testing.capture_logs() as logs:
        reply = server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"})
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_failed"
    assert secret not in reply.text
    assert [entry["error"] for entry in logs if entry["event"] == "engine failed"] == [secret]


def test_version_and_models(serve, canned):
    server = serve(canned.engine("ok"))
    version = server.http.get("/version").json()
    assert (version["system_fingerprint"], version["draft"]) == ("fp_toy", "canned-1")
    assert version["version"]
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("toy", 512)
    assert server.http.get("/v1/models/toy").json() == model
    assert server.http.get("/v1/models/a/b").json()["error"]["code"] == "model_not_found"


def test_keys(serve, canned):
    server = serve(canned.engine("ok"), api_keys=("first", "sécond"))

    def status(path, *headers):
        return server.http.get(path, headers=[("Authorization", value) for value in headers]).status_code

    for right in ("Bearer first", "bearer first", "Bearer sécond".encode()):
        assert status("/v1/models", right) == 200
    for wrong in (
        "Bearer First",
        "Bearer firs",
        "Bearer",
        "first",
        "Basic first",
        b"Bearer \xff",
        "Bearer " + "x" * 9999,
    ):
        assert status("/v1/models", wrong) == 401
    assert status("/v1/models", "Bearer first", "Bearer first") == 401
    for path in ("/v1/models", "/docs", "/openapi.json", "/nothing"):
        assert status(path) == 401
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert status(path) == 200
    reply = server.http.post("/v1/completions", json=GOOD)
    assert (reply.json()["error"]["code"], reply.headers["www-authenticate"]) == ("invalid_api_key", "Bearer")
    assert server.service.engine.requests == []
    allowed = server.http.post("/v1/completions", json=GOOD, headers={"Authorization": "Bearer first"})
    assert allowed.json()["choices"][0]["text"] == "ok"


@pytest.mark.parametrize(
    ("guard", "open_paths"),
    [("none", ["/health", "/ready", "/version", "/metrics"]), ("metrics", ["/health", "/ready"]), ("all", [])],
)
def test_what_is_guarded_is_a_choice(serve, canned, guard, open_paths):
    server = serve(canned.engine("ok"), api_keys=("first",), guard=guard)
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert server.http.get(path).status_code == (200 if path in open_paths else 401)
        assert server.http.get(path, headers={"Authorization": "Bearer first"}).status_code == 200


PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def test_other_origins_are_refused_unless_named(serve, canned):
    server = serve(canned.engine("ok"))
    assert server.http.options("/v1/completions", headers=PREFLIGHT).status_code == 405
    reply = server.http.post("/v1/completions", json=GOOD, headers={"Origin": "https://app.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("given", ["https://app.example", "*"])
def test_named_origins_may_call(serve, canned, given):
    server = serve(canned.engine("ok"), cors_origins=(given,), api_keys=("first",))
    asked = server.http.options("/v1/completions", headers=PREFLIGHT)
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, given)
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    origin = {"Origin": "https://app.example"}
    refused = server.http.post("/v1/completions", json=GOOD, headers=origin)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, given)
    allowed = server.http.post("/v1/completions", json=GOOD, headers={**origin, "Authorization": "Bearer first"})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, given)
    if given != "*":
        other = server.http.options("/v1/completions", headers={**PREFLIGHT, "Origin": "https://evil.example"})
        assert (other.status_code, "access-control-allow-origin" in other.headers) == (400, False)


def test_documentation_is_complete(serve, canned):
    server = serve(canned.engine("ok"))
    schema = server.http.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/ready", "/version", "/metrics"} < set(
        schema["paths"]
    )
    for name in ("CompletionRequest", "ChatRequest"):
        body = schema["components"]["schemas"][name]
        assert all(field.get("description") for field in body["properties"].values())
        assert body["example"]["model"]
        assert body["additionalProperties"] is False
    responses = schema["paths"]["/v1/completions"]["post"]["responses"]
    assert set(responses) == {"200", "4XX", "500", "503", "504"}
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "null" in [kind.get("type") for kind in body["properties"]["n"]["anyOf"]]
    assert body["properties"]["model"]["type"] == "string"
    assert server.http.get("/docs").status_code == 200


def test_nothing_is_both_honoured_and_refused():
    for body in (CompletionRequest, ChatRequest):
        assert set(NEUTRAL) < set(body.neutral)
        assert not set(body.neutral) & set(body.model_fields)


@pytest.mark.parametrize("module", ["app", "serve"])
def test_the_server_process_does_not_load_torch(module):
    code = f"import sys, redraft.server.{module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
