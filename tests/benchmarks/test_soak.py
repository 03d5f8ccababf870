"""A short soak of a real server, and that a soak sees what it looks for."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from redraft.benchmarks.cli import app
from redraft.benchmarks.soak import SAMPLES, Soak, run
from redraft.benchmarks.soak_process import HELD, Memory, ServedProcess
from redraft.benchmarks.soak_requests import Attempt, attempt, make_cases
from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.engine.types import RedraftError

MIB = 1 << 20


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)


def test_a_short_soak(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``make soak`` is the same for ten minutes."""
    found = run(["--target", str(target), "--device", "cpu"], 60, 64, 1, tmp_path / "json", ["soak"])
    assert min(found.attempts[name] for name in ("complete", "left", "refused")) > 0
    line = json.loads((tmp_path / "json").read_text())
    assert (line["faults"], line["attempts"]) == ([], dict(found.attempts))
    assert capsys.readouterr().out.splitlines()[-1] == json.dumps(line)


class Seen:
    """A process that was seen in some state."""

    def __init__(self, files: int = 9, **held: float) -> None:
        self._files = files
        self._held = dict.fromkeys(HELD, 1.0) | held

    async def held(self) -> dict[str, float]:
        return self._held

    def files(self) -> int:
        return self._files


def soak(process: Any = None) -> Soak:
    return Soak(cast("ServedProcess", process), 4, seed=0, longest=20)


@pytest.mark.parametrize(("name", "grown"), [("server", 17), ("engine", 30)])
def test_growing_memory_is_found(name: str, grown: int) -> None:
    steady = {"server": 100 * MIB, "engine": 1000 * MIB}
    for growth, faults in ((grown * MIB, 1), (grown * MIB // 3, 0)):
        one = soak()
        for number in range(SAMPLES):
            late = growth * (number > SAMPLES // 2)
            one.found.memory.append(Memory(**(steady | {name: steady[name] + late})))
        one._check_memory()
        assert len(one.found.faults) == faults
        assert all(name in fault for fault in one.found.faults)


async def _held(left: dict[str, Any]) -> list[str]:
    one = soak(Seen(**left))
    await one._check_nothing_held(dict.fromkeys(HELD, 1.0), 9)
    return one.found.faults


def test_what_stays_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.benchmarks.soak.QUIET_SECONDS", 0.0)
    for left in ({"files": 10}, {"kv_pages_used": 2.0}, {"server_tasks": 3.0}):
        assert "still held" in asyncio.run(_held(left))[0]
    assert asyncio.run(_held({})) == []


def test_another_answer_is_found() -> None:
    one = soak()
    one._expected = {0: ("text", "stop")}
    asked = Attempt({"n": 2}, 0, None)
    one._compare(asked, {0: ("text", "stop"), 1: ("text", "stop")})
    assert one.found.faults == []
    for wrong in (
        {0: ("text", "stop")},
        {0: ("text", "stop"), 1: ("texts", "stop")},
        {0: ("text", None), 1: ("", None)},
    ):
        one._compare(asked, wrong)
    assert len(one.found.faults) == 3


def test_what_is_asked_covers_every_way() -> None:
    source = random.Random(0)
    cases = make_cases(24, source, 60)
    asked = [attempt(cases, source) for _ in range(2000)]
    assert {a.case for a in asked} == {None, *range(24)}
    ways = Counter(
        (a.body.get("stream"), a.patience is None, "speculation" in a.body) for a in asked if a.case is not None
    )
    assert len(ways) == 8
    assert all(a.body["temperature"] == 0 for a in asked if a.body.get("n", 1) in (2, 3, 4))
    assert all("seed" in c.body for c in cases if c.body["temperature"] > 0)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RedraftError, match=r"did not start: .*there is no folder"),
        ServedProcess(["--target", "/no/such/folder"], tmp_path / "output"),
    ):
        pass
    result = CliRunner().invoke(app, ["soak", "--seconds", "1"])
    assert result.exit_code == 2
