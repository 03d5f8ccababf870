"""``redraft bench load``: its options, its report, and what is left of an interrupted run."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from redraft.benchmarks import load_contest
from redraft.benchmarks.load import Settings, Sinks, run
from redraft.benchmarks.load_clients import Answer, Event, now
from redraft.benchmarks.load_contest import Contest
from redraft.benchmarks.load_plan import closed_levels
from redraft.benchmarks.measure import Ask
from redraft.server.cli import app
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import RedraftError

TOP_KEYS = {"command", "commit", "dirty", "versions", "machine", "date", "engine", "settings", "levels", "complete"}
SIDE_KEYS = {
    "requests",
    "errors",
    "tokens",
    "seconds",
    "tokens_per_second",
    "steady_tokens_per_second",
    "per_user_tokens_per_second",
    *(f"{name}_p{percent}" for name in ("ttft", "itl", "event_gap") for percent in (50, 90, 99)),
    "tau",
    "watts",
    "nodes_per_round",
    "event_tokens",
    "passes",
}


@dataclass
class FakeClient:
    """Answers within milliseconds; does ``at_last`` instead of the ``last``-th answer."""

    last: int = 10_000
    at_last: Callable[[], None] = lambda: None
    asked: list[tuple[str, Ask]] = field(default_factory=list)

    async def answer(self, prompt: str, ask: Ask) -> Answer:
        self.asked.append((prompt, ask))
        if len(self.asked) == self.last:
            self.at_last()
        await asyncio.sleep(0.001)
        first = Event(now(), 1)
        await asyncio.sleep(0.001)
        return Answer((first, Event(now(), 2)), 3, (1, 2, 3), (1, 1), 4, counted=True)


def contest(plain: FakeClient, speculative: FakeClient) -> Any:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Contest]:
        yield Contest({"plain": plain, "speculative": speculative}, lambda: {"draft": "fake"}, "tiny", "fake-1")

    return opening()


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def test_report_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(tmp_path / "load.json", tmp_path / "results")
    sinks.prepare()
    run(contest(FakeClient(), FakeClient()), ("a", "b"), closed_levels((1, 2), 2, None), Settings(), sinks, ["redraft"])
    printed = capsys.readouterr()
    report = last_line(printed.out)
    assert report.keys() >= TOP_KEYS
    assert (report["benchmark"], report["complete"], report["error"]) == ("load", True, None)
    assert report["settings"]["prompts"] == 2
    assert [level["concurrency"] for level in report["levels"]] == [1, 2]
    for level in report["levels"]:
        for side in ("plain", "speculative"):
            assert level[side].keys() == SIDE_KEYS
            assert len(level[side]["passes"]) == 2
            assert level[side]["requests"] == 2 * level["requests"]
        assert (level["parity"], level["compared"]) == (1, 2 * level["requests"])
    assert len(printed.out.splitlines()) == 6, "a head, two lines a level, JSON"
    assert json.loads((tmp_path / "load.json").read_text()) == report
    assert json.loads((tmp_path / "results" / "load.jsonl").read_text()) == report
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in printed.err


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # warm-up and 3 requests of one user, then warm-up of two users and 4 of their 6 requests
    speculative = FakeClient(1 + 3 + 2 + 5, ctrl_c)
    sinks = Sinks(tmp_path / "load.json")
    with pytest.raises(KeyboardInterrupt):
        run(
            contest(FakeClient(), speculative),
            ("a",),
            closed_levels((1, 2, 4), 1, None),
            Settings(repeat=1),
            sinks,
            ["redraft"],
        )
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert (report["complete"], report["error"]) == (False, "KeyboardInterrupt")
    assert "incomplete" in lines[-2]
    whole, cut = report["levels"]
    assert (whole["concurrency"], whole["speculative"]["requests"]) == (1, 3)
    assert (cut["concurrency"], cut["plain"]["requests"]) == (2, 6)
    assert cut["speculative"]["passes"][0]["complete"] is False
    assert 2 <= cut["speculative"]["requests"] <= 4
    assert (cut["speedup"], cut["parity"]) == (None, 1)
    assert json.loads((tmp_path / "load.json").read_text()) == report
    assert (tmp_path / "load.png").stat().st_size > 0


def test_a_side_that_fails_keeps_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    class Dies(FakeClient):
        async def answer(self, prompt: str, ask: Ask) -> Answer:
            if len(self.asked) >= 4:
                raise RedraftError("the engine's process ended")
            return await super().answer(prompt, ask)

    with pytest.raises(RedraftError, match="concurrency 2: every request for speculative decoding failed"):
        run(contest(FakeClient(), Dies()), ("a",), closed_levels((1, 2), 1, None), Settings(repeat=1), Sinks(), [])
    report = last_line(capsys.readouterr().out)
    assert not report["complete"]
    assert [level["concurrency"] for level in report["levels"]] == [1]


def test_an_opening_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Contest]:
        raise RedraftError("the target does not fit")
        yield

    with pytest.raises(RedraftError, match="does not fit"):
        run(opening(), ("a",), closed_levels((1,), 1, None), Settings(), Sinks(), [])
    assert capsys.readouterr().out == ""


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "load", *map(str, arguments)])


def test_the_command_line_reaches_engines_and_clients(
    tiny_target: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[EngineConfig, tuple[str, ...], int]] = []
    plain, speculative = FakeClient(), FakeClient()

    def engines(config: EngineConfig, prompts: tuple[str, ...], max_tokens: int) -> Any:
        opened.append((config, prompts, max_tokens))
        return contest(plain, speculative)

    monkeypatch.setattr(load_contest, "engines", engines)
    common = ("--prompts", prompt_file, "--target", tiny_target, "--draft", "ngram", "--device", "cpu")
    result = bench(
        *common, "--concurrency", "1,2", "--limit", "2", "--max-tokens", "5", "--temperature", "0.5", "--seed", "9",
        "--requests", "4", "--repeat", "1", "--dtype", "fp32", "--max-nodes", "3", "--no-draft-ngram",
        "--png", tmp_path / "own.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((config, prompts, max_tokens),) = opened
    assert (config.target, config.draft, config.device, config.dtype) == (str(tiny_target), "ngram", "cpu", "fp32")
    assert (config.max_num_seqs, config.max_nodes, config.draft_ngram, config.prefix_caching) == (2, 3, False, False)
    assert (len(prompts), max_tokens) == (2, 5)
    assert plain.asked == speculative.asked
    # one user's warm-up, four requests, two users' warm-up, four requests
    assert [ask for _, ask in plain.asked[1:5]] == [Ask(5, 0.5, 9 + number) for number in range(4)]
    assert [prompt for prompt, _ in plain.asked[1:5]] == [*prompts, *prompts]
    assert [level["requests"] for level in last_line(result.stdout)["levels"]] == [4, 4]
    assert (tmp_path / "own.png").stat().st_size > 0
    assert bench(*common, "--rate", "200,100", "--requests", "3", "--repeat", "1").exit_code == 0
    assert opened[-1][0].max_num_seqs == 8
    assert bench(*common, "--concurrency", "1", "--max-num-seqs", "5", "--repeat", "1").exit_code == 0
    assert opened[-1][0].max_num_seqs == 5


def test_ctrl_c_is_exit_code_130(tiny_target: Path, prompt_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(5, ctrl_c)
    monkeypatch.setattr(load_contest, "engines", lambda *arguments: contest(FakeClient(), client))
    result = bench("--prompts", prompt_file, "--target", tiny_target, "--draft", "ngram", "--concurrency", "1")
    assert result.exit_code == 130
    assert last_line(result.stdout)["complete"] is False


def test_errors_are_one_line_and_exit_code_2(tiny_target: Path, prompt_file: Path, tmp_path: Path) -> None:
    own, url = ("--prompts", prompt_file), ("--url", "http://127.0.0.1:9")
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((*own, "--concurrency", "1,0"), "--concurrency '1,0' must be numbers from 1 to 1024"),
        ((*own, "--rate", "-1"), "--rate '-1' must be requests per second"),
        ((*own, "--rate", "1", "--concurrency", "1"), "give one of them"),
        ((*own, "--limit", "0"), "--limit 0"),
        ((*own, "--model", "m"), "--model needs --url"),
        ((*own, *url, "--dtype", "bf16"), "--dtype says how this process decodes"),
        ((*own, "--plain-url", url[1], "--max-num-seqs", "3"), "--max-num-seqs says how this process decodes"),
        ((*own, *url), "does not answer as an OpenAI server would"),
        (("--prompts", tmp_path / "none.jsonl"), "cannot read"),
        ((*own, "--json", tmp_path / "no" / "x.json"), "cannot write"),
        ((*own, "--json", tmp_path / "x.png"), "JSON and picture would both go to"),
        ((*own, "--png", tmp_path / "no" / "x.png"), "cannot write"),
        ((*own, "--target", tmp_path / "nothing"), "there is no folder"),
    ]
    for arguments, message in cases:
        result = bench(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr
