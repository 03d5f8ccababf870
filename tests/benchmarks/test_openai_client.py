"""The client against a small server that behaves, refuses and fails on demand."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from redraft.benchmarks.measure import Ask
from redraft.benchmarks.openai_client import OpenAIServer
from redraft.server.cli import app
from redraft.server.engine.types import RedraftError

ASK = Ask(max_tokens=9, temperature=0.5, seed=3)
USER = [{"role": "user", "content": "hi"}]
METRICS = {"speculative_decoding": {"mean_acceptance_length": 2.0, "acceptance_histogram": [1, 2, 1, 0, 0]}}


@dataclass
class FakeServer:
    """Streams three words; the flags say how it differs from a server that knows everything."""

    takes_metrics: bool = True
    sends_usage: bool = True
    status: int = 200
    event_error: bool = False
    models: list[str] = field(default_factory=lambda: ["first", "second"])
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if "include_metrics" in body and not self.takes_metrics:
            return web.json_response({"error": {"message": "unknown parameter: include_metrics"}}, status=400)
        if self.status != 200:
            return web.json_response({"error": {"message": "no room", "code": None}}, status=self.status)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": None}}]}]
        events += [{"choices": [{"delta": {"content": word}}]} for word in ("one ", "two ", "three")]
        if self.event_error:
            events.append({"error": {"message": "the engine's process ended"}})
        if self.sends_usage:
            metrics = METRICS if body.get("include_metrics") else None
            events.append({"choices": [], "usage": {"completion_tokens": 8}, "metrics": metrics})
        text = "".join(f"data: {json.dumps(event)}\n\n: a comment\n\n" for event in events)
        await reply.write(text.encode() + b"data: [DONE]\n\n")
        return reply


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """A function that starts a server in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners: list[web.AppRunner] = []

    async def start(server: FakeServer) -> None:
        application = web.Application()
        application.router.add_get("/v1/models", server.list_models)
        application.router.add_post("/v1/chat/completions", server.chat)
        runner = web.AppRunner(application)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    def make(**flags: Any) -> FakeServer:
        server = FakeServer(**flags)
        asyncio.run_coroutine_threadsafe(start(server), loop).result(10)
        return server

    yield make
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_reads_text_usage_and_metrics(serve: Callable[..., FakeServer]) -> None:
    fake = serve()
    with OpenAIServer(f"{fake.url}/v1/", api_key="secret") as server:
        reply = server.answer(USER, ASK)
    assert (reply.text, reply.tokens, reply.units) == ("one two three", 8, ("one", "two", "three"))
    assert reply.rounds == (1, 2, 1, 0, 0)
    assert reply.seconds > 0
    assert fake.keys == ["Bearer secret"]
    assert fake.requests == [
        {
            "model": "first",
            "messages": USER,
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
            "include_metrics": True,
        }
    ]


def test_goes_on_without_metrics_where_they_are_refused(serve: Callable[..., FakeServer]) -> None:
    fake = serve(takes_metrics=False)
    with OpenAIServer(fake.url, model="mine") as server:
        replies = [server.answer(USER, ASK) for _ in range(2)]
    assert [reply.rounds for reply in replies] == [None, None]
    assert ["include_metrics" in body for body in fake.requests] == [True, False, False]
    assert {body["model"] for body in fake.requests} == {"mine"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sends_usage": False}, "sends no usage"),
        ({"status": 400}, "status 400: no room"),
        ({"status": 500}, "status 500: no room"),
        ({"event_error": True}, "the engine's process ended"),
        ({"models": []}, "lists no model"),
    ],
)
def test_what_goes_wrong_is_told(serve: Callable[..., FakeServer], flags: dict[str, Any], message: str) -> None:
    fake = serve(**flags)
    with pytest.raises(RedraftError, match=message), OpenAIServer(fake.url) as server:
        server.answer(USER, ASK)


def test_nobody_listens() -> None:
    with (
        pytest.raises(RedraftError, match="does not answer as an OpenAI server would"),
        OpenAIServer("http://127.0.0.1:9"),
    ):
        pass


def test_bench_speed_with_url(serve: Callable[..., FakeServer], prompt_file: Path) -> None:
    fake, plain = serve(), serve(takes_metrics=False)
    common = ["bench", "speed", "--prompts", str(prompt_file), "--url", fake.url]
    alone = CliRunner().invoke(app, common)
    assert alone.exit_code == 0, alone.output
    (found,) = json.loads(alone.stdout.splitlines()[-1])["files"]
    assert (found["plain_tokens_per_second"], found["speedup"], found["parity"]) == (None, None, None)
    assert (found["tau"], found["histogram"], found["tokens"]) == (2.0, [3, 6, 3], 24)
    both = CliRunner().invoke(app, [*common, "--plain-url", plain.url, "--model", "m", "--api-key", "k"])
    assert both.exit_code == 0, both.output
    report = json.loads(both.stdout.splitlines()[-1])
    assert report["files"][0]["parity"] == 1.0
    assert report["files"][0]["speedup"] > 0
    assert report["engine"] == {"url": fake.url, "plain_url": plain.url, "model": "m"}
    assert fake.keys[-1] == plain.keys[-1] == "Bearer k"
