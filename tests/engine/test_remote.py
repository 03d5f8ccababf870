"""The engine in its own process: it decodes, forgets on cancel, reports refusals, and its death is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.remote import RemoteEngine
from redraft.server.engine.types import FinishReason, RedraftError, Request, SamplingParams
from redraft.server.engine.wire import Submit
from redraft.server.engine.worker import _take


@asynccontextmanager
async def running(folder: Path, **options: object) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(
        EngineConfig(str(folder), "tiny", "0", device="cpu", dtype="fp32", max_num_seqs=2, **options)  # type: ignore[arg-type]
    )
    try:
        await asyncio.wait_for(engine.wait_ready(), 60)
        yield engine
    finally:
        await engine.close()


def request(name: str, max_tokens: int = 8, prompt: tuple[int, ...] = (5, 6, 7), seed: int = 0) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, seed=seed))


async def collect(engine: RemoteEngine, item: Request) -> tuple[list[int], FinishReason | None, str | None]:
    tokens: list[int] = []
    last = None
    async for output in engine.generate(item):
        tokens += output.tokens
        last = output
    assert last is not None
    return tokens, last.finish_reason, last.error


async def idle(engine: RemoteEngine) -> None:
    deadline = time.monotonic() + 5
    while engine.stats.running or engine.stats.waiting or engine.stats.pages_used:
        assert time.monotonic() < deadline, engine.stats
        await asyncio.sleep(0.01)


def test_requests_decode_together_as_alone_and_cancel_frees_everything(random_target: Callable[[str], Path]) -> None:
    async def check() -> None:
        async with running(random_target("llama")) as engine:
            assert engine.info is not None
            assert engine.info.draft == "ngram-1"
            alone, reason, _ = await collect(engine, request("a", 20, seed=2**64 - 1))
            assert (len(alone), reason) == (20, FinishReason.LENGTH)
            many = await asyncio.gather(
                *(collect(engine, request(f"m{i}", 20, seed=2**64 - 1 if i == 2 else i)) for i in range(5))
            )
            assert many[2][0] == alone
            await idle(engine)

            stream = engine.generate(request("long", 700))
            await anext(stream)
            waiting = [asyncio.create_task(collect(engine, request(f"w{i}", 700))) for i in range(3)]
            await asyncio.sleep(0.05)
            await stream.aclose()
            for task in waiting:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await idle(engine)
            assert (await collect(engine, request("after", 20, seed=2**64 - 1)))[0] == alone

    asyncio.run(check())


def test_a_refused_request_costs_no_other(random_target: Callable[[str], Path]) -> None:
    async def check() -> None:
        async with running(random_target("llama")) as engine:
            results = await asyncio.gather(
                collect(engine, request("good")),
                collect(engine, request("empty", prompt=())),
                collect(engine, request("range", prompt=(331,))),
                collect(engine, request("long", prompt=(1,) * 1024)),
            )
            assert [reason for _, reason, _ in results] == [FinishReason.LENGTH, *[FinishReason.ERROR] * 3]
            assert "empty" in (results[1][2] or "")
            assert "0 ... 330" in (results[2][2] or "")
            assert "1024 tokens" in (results[3][2] or "")

    asyncio.run(check())


def test_death_of_the_process_ends_every_request_and_shows(random_target: Callable[[str], Path]) -> None:
    async def check() -> None:
        async with running(random_target("llama")) as engine:
            stream = engine.generate(request("a", 900))
            await anext(stream)
            engine._process.kill()
            with suppress(StopAsyncIteration):
                while True:
                    last = await anext(stream)
            assert last.finish_reason is FinishReason.ERROR
            assert not engine.alive
            with pytest.raises(RedraftError, match="ended"):
                await collect(engine, request("b"))

    asyncio.run(check())


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
        with pytest.raises(RedraftError, match="MambaForCausalLM"):
            async with running(tmp_path):
                pass

    asyncio.run(check())


def test_an_unknown_draft_is_refused(random_target: Callable[[str], Path]) -> None:
    async def check() -> None:
        with pytest.raises(RedraftError, match=r"some/eagle: no config\.json; a draft is a folder"):
            async with running(random_target("llama"), draft="some/eagle"):
                pass

    asyncio.run(check())


def test_what_goes_wrong_with_one_request_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def submit(self, request: Request) -> None:
            raise OverflowError("something about this one")

    (output,) = _take(Broken(), Submit(request("a")))  # type: ignore[arg-type]
    assert (output.request_id, output.finish_reason) == ("a", FinishReason.ERROR)
    assert output.error == "the request could not be taken (OverflowError)"
    assert "something about this one" in capfd.readouterr().err
