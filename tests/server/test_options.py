"""The engine that each command's options ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from redraft.kernels import block_tree, ngram
from redraft.server.cli import app
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import RedraftError
from redraft.server.limits import MAX_DRAFTED
from redraft.server.options import DEFAULT_TARGET, ReasoningParser, ToolParser
from redraft.server.output.formats import CALLS
from redraft.server.output.reasoning import TAGS
from redraft.server.settings import ServerSettings

runner = CliRunner()
COMMANDS = {
    "serve": ["serve", "--port", "0"],
    "generate": ["generate", "Hello"],
    "prompts": ["data", "prompts", "--out", "x.jsonl", "--count", "1"],
    "respond": ["data", "respond", "--out", "x.jsonl", "prompts.jsonl"],
    "speed": ["bench", "speed", "--prompts", "prompts.jsonl"],
}
ENTRIES = (
    "server.launch.serve",
    "server.generate.generate",
    "server.data.prompts.write_prompts",
    "server.data.respond.respond",
    "benchmarks.speed.engine_contest",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The target, draft, revision and offline that a command asks for, and the config that it runs with."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"turns": ["Hello"]}\n')
    found: list[Any] = []

    def configure(target: str, draft: str | None, *, revision: str | None, offline: bool) -> EngineConfig:
        found.append((target, draft, revision, offline))
        return EngineConfig("/target", "toy", "sha", draft)

    def run(config: EngineConfig, *_: object) -> None:
        found.append(config)
        raise RedraftError("seen")

    monkeypatch.setattr("redraft.server.engine.configure.configure", configure)
    for entry in ENTRIES:
        monkeypatch.setattr(f"redraft.{entry}", run)

    def ask(command: str, *arguments: str, **env: str) -> tuple[Any, EngineConfig]:
        found.clear()
        result = runner.invoke(app, [*COMMANDS[command], *arguments], env=env)
        assert result.stderr == "redraft: seen\n"
        resolved, config = found
        return resolved, config

    return ask


GIVEN: dict[str, Any] = {
    "draft_ngram": False,
    "draft_own_tokens": 9,
    "dtype": "bf16",
    "device": "cpu",
    "gpu_memory_utilization": 0.5,
    "max_model_len": 99,
    "max_num_seqs": 3,
    "max_num_batched_tokens": 17,
    "prefix_caching": False,
    "cuda_graphs": False,
    "speculation": "4",
    "max_nodes": 5,
    "draft_branch": 2,
}
"""What is given of an engine's config, none of it a default."""
SHARED = {"draft_ngram", "dtype", "device", "gpu_memory_utilization", "max_model_len"}
TAKES: dict[str, set[str]] = {
    "serve": GIVEN.keys() - {"draft_branch"},
    "generate": SHARED | {"speculation", "max_nodes", "draft_own_tokens"},
    "prompts": SHARED | {"max_num_seqs", "max_num_batched_tokens"},
    "respond": SHARED | {"max_num_seqs", "max_num_batched_tokens"},
    "speed": {"draft_ngram", "dtype", "device", "speculation", "max_nodes", "draft_branch", "draft_own_tokens"},
}
ALONE = {"generate": {"max_num_seqs": 1}, "speed": {"max_num_seqs": 1}}
"""What these settle themselves."""


@pytest.mark.parametrize("command", COMMANDS)
def test_options_reach_the_engine(asked: Any, command: str) -> None:
    words = ["--target", "a/b", "--draft", "d", *([] if command == "speed" else ["--revision", "r", "--offline"])]
    for name in TAKES[command]:
        option = name.replace("_", "-")
        words += [f"--no-{option}"] if GIVEN[name] is False else [f"--{option}", str(GIVEN[name])]
    resolved, config = asked(command, *words)
    assert resolved == ("a/b", "d", *((None, False) if command == "speed" else ("r", True)))
    taken = {name: GIVEN[name] for name in TAKES[command]} | ALONE.get(command, {})
    assert config == EngineConfig("/target", "toy", "sha", "d", **taken)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_engines_defaults_hold(asked: Any, command: str) -> None:
    resolved, config = asked(command)
    seqs = {"max_num_seqs": 16} if command in ("prompts", "respond") else {}
    assert resolved == (DEFAULT_TARGET, None, None, False)
    assert config == EngineConfig("/target", "toy", "sha", **{**seqs, **ALONE.get(command, {})})


def test_variables_reach_the_engine(asked: Any) -> None:
    options = {name: GIVEN[name] for name in TAKES["serve"]}
    env = {f"REDRAFT_{name.upper()}": str(value) for name, value in options.items()}
    assert asked("serve", **env)[1] == EngineConfig("/target", "toy", "sha", **options)


@pytest.mark.parametrize("parser", [*CALLS, "auto", "none"])
@pytest.mark.parametrize("tags", ["think", "auto"])
def test_parsers_reach_the_server(monkeypatch: pytest.MonkeyPatch, parser: str, tags: str) -> None:
    found: list[ServerSettings] = []
    monkeypatch.setattr("redraft.server.engine.configure.configure", lambda *_, **__: EngineConfig("/t", "toy", "sha"))
    monkeypatch.setattr("redraft.server.launch.serve", lambda config, settings: found.append(settings))
    runner.invoke(app, ["serve", "--port", "0", "--tool-parser", parser], env={"REDRAFT_REASONING_PARSER": tags})
    assert [(settings.tool_parser, settings.reasoning_parser) for settings in found] == [(parser, tags)]


def test_every_parser_can_be_chosen() -> None:
    for option, known in ((ToolParser, CALLS), (ReasoningParser, TAGS)):
        assert set(get_args(get_args(option)[0])) == {*known, "auto", "none"}


@pytest.mark.parametrize("command", ["serve", "generate", "speed"])
@pytest.mark.parametrize("value", ["off", "0", "00"])
def test_speculation_off_loads_no_draft(asked: Any, command: str, value: str) -> None:
    resolved, config = asked(command, "--draft", "owner/draft", "--speculation", value)
    assert (resolved[1], config.draft, config.speculation) == ("none", "none", "off")


@pytest.mark.parametrize("limit", [["--draft", "none"], ["--max-nodes", "4"], ["--max-nodes", "0"]], ids=" ".join)
def test_a_number_that_cannot_be_drafted_is_refused(limit: list[str]) -> None:
    arguments = ["--target", "/no/such/folder", "--speculation", "5", *limit]
    result = runner.invoke(app, ["generate", "Hello", *arguments])
    assert result.exit_code == 2
    assert result.stderr == f"redraft: --speculation 5 is more than {' '.join(limit)} allows; leave one of them out\n"


def test_the_bound_on_nodes_is_the_kernels() -> None:
    assert MAX_DRAFTED == ngram.MAX_NODES == block_tree.MAX_NODES
