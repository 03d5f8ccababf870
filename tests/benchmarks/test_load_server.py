"""The client of ``bench load`` against a small server that behaves, refuses and fails on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from redraft.benchmarks.load import Settings, Sinks, run
from redraft.benchmarks.load_contest import Contest, servers
from redraft.benchmarks.load_plan import closed_levels
from redraft.benchmarks.load_server import ServerUnderLoad
from redraft.benchmarks.measure import Ask
from redraft.server.engine.types import RedraftError

ASK = Ask(max_tokens=9, temperature=0.5, seed=3)
METRICS = {"speculative_decoding": {"acceptance_histogram": [1, 2, 1, 0, 0], "num_draft_tokens": 12}}
EXTRAS = ("include_metrics", "continuous_usage_stats", "cache_salt")


@dataclass
class FakeServer:
    """Streams three words that are eight tokens; ``takes`` are the extras that it knows."""

    takes: tuple[str, ...] = ()
    status: int = 200
    breaks: bool = False
    error: bool = False
    models: tuple[str, ...] = ("first", "second")
    fails: Callable[[str], bool] = lambda prompt: False
    word: str = "three"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    busy: int = 0
    most: int = 0

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        asked = {**body, **body["stream_options"]}
        unknown = next((name for name in EXTRAS if name in asked and name not in self.takes), None)
        if unknown is not None:
            return web.json_response({"error": {"message": f"unknown parameter: {unknown}"}}, status=400)
        if self.status != 200 or self.fails(body["messages"][0]["content"]):
            return web.json_response({"error": {"message": "no room"}}, status=max(self.status, 400))
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            return await self.stream(request, asked)
        finally:
            self.busy -= 1

    async def stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        running = "continuous_usage_stats" in asked
        for word, tokens in (("one ", 1), ("two ", 4), (self.word, 8)):
            await asyncio.sleep(0.002)
            usage = {"completion_tokens": tokens} if running else None
            await send(reply, {"choices": [{"delta": {"content": word}}], "usage": usage})
            if self.breaks and request.transport is not None:
                request.transport.close()
                return reply
        if self.error:
            await send(reply, {"error": {"message": "the engine's process ended"}})
        metrics = METRICS if "include_metrics" in asked else None
        await send(reply, {"choices": [], "usage": {"completion_tokens": 8}, "metrics": metrics})
        await reply.write(b"data: [DONE]\n\n")
        return reply


async def send(reply: web.StreamResponse, event: dict[str, Any]) -> None:
    await reply.write(f": a comment\n\ndata: {json.dumps(event)}\n\n".encode())


@asynccontextmanager
async def served(fake: FakeServer) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/v1/models", fake.list_models)
    application.router.add_post("/v1/chat/completions", fake.chat)
    async with TestServer(application) as server:
        yield str(server.make_url("/"))


def with_client(fake: FakeServer, use: Callable[[ServerUnderLoad], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        async with served(fake) as url, ServerUnderLoad(url, **options) as client:
            return await use(client)

    return asyncio.run(main())


def test_asks_for_what_is_worth_having() -> None:
    fake = FakeServer(takes=EXTRAS)
    answer = with_client(fake, lambda client: client.answer("hi", ASK), api_key="secret")
    assert [event.tokens for event in answer.events] == [1, 3, 4]
    assert answer.events[0].at < answer.events[1].at < answer.events[2].at
    assert (answer.tokens, answer.units, answer.counted) == (8, ("one two three",), True)
    assert (answer.rounds, answer.drafted) == ((1, 2, 1, 0, 0), 12)
    (body,) = fake.bodies
    assert body.pop("cache_salt")
    assert body == {
        "model": "first",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "include_metrics": True,
    }
    assert fake.keys == ["Bearer secret"]


def test_leaves_out_what_is_refused_and_remembers_it() -> None:
    fake = FakeServer(takes=("cache_salt",))

    async def use(client: ServerUnderLoad) -> list[str]:
        for _ in range(2):
            answer = await client.answer("hi", ASK)
            assert ([event.tokens for event in answer.events], answer.counted) == ([8 / 3] * 3, False)
        return client.extras

    assert with_client(fake, use, model="mine") == ["cache_salt"]
    assert len(fake.bodies) == 4
    assert {body["model"] for body in fake.bodies} == {"mine"}
    assert len({body["cache_salt"] for body in fake.bodies}) == 4, "no request finds another's prompt"


def test_many_streams_at_once() -> None:
    fake = FakeServer(takes=EXTRAS)

    async def use(client: ServerUnderLoad) -> None:
        await asyncio.gather(*(client.answer("hi", ASK) for _ in range(120)))

    with_client(fake, use)
    assert fake.most > 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"status": 400}, "status 400: no room"),
        ({"status": 503}, "status 503: no room"),
        ({"error": True}, "the engine's process ended"),
        ({"breaks": True}, "does not answer as an OpenAI server would"),
        ({"models": ()}, "lists no model"),
    ],
)
def test_what_goes_wrong_is_told(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(RedraftError, match=message):
        with_client(FakeServer(takes=EXTRAS, **flags), lambda client: client.answer("hi", ASK))


def test_nobody_listens() -> None:
    async def main(model: str | None) -> None:
        async with ServerUnderLoad("http://127.0.0.1:9", model) as client:
            await client.answer("hi", ASK)

    for model in (None, "mine"):
        with pytest.raises(RedraftError, match="does not answer as an OpenAI server would"):
            asyncio.run(main(model))


@asynccontextmanager
async def both(speculative: FakeServer | None, plain: FakeServer | None) -> AsyncIterator[Contest]:
    @asynccontextmanager
    async def address(fake: FakeServer | None) -> AsyncIterator[str | None]:
        if fake is None:
            yield None
        else:
            async with served(fake) as url:
                yield url

    async with (
        address(speculative) as url,
        address(plain) as plain_url,
        servers(url, plain_url, None, None) as contest,
    ):
        yield contest


def report_of(
    speculative: FakeServer | None, plain: FakeServer | None, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    levels = closed_levels((1, 3), 2, None)
    run(both(speculative, plain), ("a", "b"), levels, Settings(repeat=1), Sinks(), ["redraft", "bench"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_two_servers(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(FakeServer(takes=EXTRAS), FakeServer(), capsys)
    assert report["complete"]
    assert report["engine"]["model"] == {"plain": "first", "speculative": "first"}
    assert report["engine"]["extras"] == {"plain": [], "speculative": list(EXTRAS)}
    for level in report["levels"]:
        assert level["parity"] == 1
        assert level["speedup"] > 0
        assert (level["speculative"]["tau"], level["plain"]["tau"]) == (2, None)
        assert (level["speculative"]["nodes_per_round"], level["plain"]["nodes_per_round"]) == (3, None)
        assert (level["speculative"]["event_tokens"], level["plain"]["event_tokens"]) == ("counted", "spread")
        assert 0 < level["plain"]["ttft_p50"] <= level["plain"]["ttft_p99"]
    assert [level["plain"]["requests"] for level in report["levels"]] == [3, 9]


def test_differing_text_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(FakeServer(word="3"), FakeServer(), capsys)
    assert [level["parity"] for level in report["levels"]] == [0, 0]


@pytest.mark.parametrize("alone", ["plain", "speculative"])
def test_one_server_alone(alone: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeServer(takes=EXTRAS)
    report = report_of(*((fake, None) if alone == "speculative" else (None, fake)), capsys)
    for level in report["levels"]:
        assert level[alone]["tokens_per_second"] > 0
        assert level[{"plain": "speculative", "speculative": "plain"}[alone]] is None
        assert (level["parity"], level["speedup"]) == (None, None)


def test_failing_requests_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(FakeServer(takes=EXTRAS, fails=lambda prompt: prompt == "b"), None, capsys)
    assert [level["speculative"]["errors"] for level in report["levels"]] == [1, 4]
