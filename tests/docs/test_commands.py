"""Every command of the documents is accounted for, and names what exists, whether it is run here or not."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from redraft.benchmarks.cli import app as bench
from redraft.benchmarks.headline.options import parse
from redraft.server.cli import app

PLACEHOLDERS = {"...", "…", "|", "COMMAND"}
"""Behind them a command in a text says nothing that could be checked."""
BENCH = typer.main.get_command(bench)
COMMAND_LINE = typer.main.get_command(app)


def test_every_command_is_accounted_for(command):
    assert command.rule is not None, "say in tests/docs/commands.toml how it is tried, or why it cannot be"


def test_every_rule_is_whole_and_used(rules, commands):
    for rule in rules:
        assert (rule.way is None) != (rule.why is None), rule
        assert rule.way in (None, "ask", "quick", "slow", "serve"), rule
    assert {rule.begins for rule in rules} == {command.rule.begins for command in commands if command.rule}


def test_names_exist(command, repository):
    if command.language == "sh":
        check(command.words, repository)


def test_names_in_texts_exist(pages, repository):
    seen = 0
    for page in pages:
        for span in page.spans:
            if span.startswith(("redraft ", "make ", "python ", "docker compose")):
                words = span.split()
                cut = next((at for at, word in enumerate(words) if word in PLACEHOLDERS), len(words))
                if cut > 1:
                    seen += 1
                    check(words[:cut], repository)
    assert seen > 20


@pytest.mark.parametrize(
    "wrong",
    [
        "redraft serv",
        "redraft serve --speculate auto",
        "redraft bench sped --limit 3",
        "redraft bench load --user 3",
        "redraft bench headline train --seed 3 --sed 3",
        "redraft data respond --many 3",
        "make tests",
        "make soak image WHEEL=x",
        "docker build --build-arg DEVICES=cpu .",
        "docker build --build-context wheel=FOLDER .",
        "docker compose --file deploy/compos.yaml up",
        "pip install redraft[gpus]",
        "npm ci --prefix tests/server/deno",
        "python -m redraft.server.metrics_docs",
        "python deploy/grafana/make.py",
        "accelerate launch -m redraft.server.cli train stf",
        "serve run redraft_serve:app replicas=3",
    ],
)
def test_the_check_sees_what_does_not_exist(wrong, repository):
    with pytest.raises(AssertionError):
        check(shlex.split(wrong), repository)


def check(words: list[str], repository: Path) -> None:
    """``AssertionError`` where ``words`` name what does not exist."""
    if "redraft.server.cli" in words:
        words = ["redraft", *words[words.index("redraft.server.cli") + 1 :]]
    of_program = CHECKS.get(words[0])
    if of_program is not None:
        of_program(words[1:], repository)


def check_redraft(words: list[str], repository: Path) -> None:
    command: Any = COMMAND_LINE
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command = command.commands[words[0]]
        if words[0] == "bench":
            command = BENCH
        words = words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if command.name == "headline":
        known = headline_options(words[0])
    assert options(words) <= known | {"--help"}, options(words) - known


def options(words: list[str]) -> set[str]:
    """Those of ``words`` that are options."""
    return {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}


def headline_options(command: str) -> set[str]:
    """What argparse would list."""
    with pytest.MonkeyPatch.context() as patch:
        told: list[str] = []
        patch.setattr("argparse.ArgumentParser.print_help", lambda parser: told.append(parser.format_help()))
        with pytest.raises(SystemExit):
            parse([command, "--help"], "redraft bench headline")
    return set(re.findall(r"--[a-z0-9-]+", told[0]))


def check_make(words: list[str], repository: Path) -> None:
    text = read(repository / "Makefile")
    targets = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)[0].split()
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable:
            assert re.search(rf"^{name} *[?:]?=", text, re.MULTILINE), f"the Makefile does not read {name}"
        else:
            assert word in targets, f"there is no target {word}"
    done = subprocess.run(["make", "--dry-run", *words], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check_docker(words: list[str], repository: Path) -> None:
    for name, value in pairwise(words):
        if name == "--file":
            assert yaml.safe_load(read(repository / value))["services"]
        if name == "--build-arg":
            assert re.search(rf"^ARG {value.partition('=')[0]}\b", read(repository / "Dockerfile"), re.MULTILINE)
        if name == "--build-context":
            assert f" AS {value.partition('=')[0]}\n" in read(repository / "Dockerfile")


def read(path: Path) -> str:
    assert path.is_file(), f"there is no {path.name}"
    return path.read_text()


def check_pip(words: list[str], repository: Path) -> None:
    project = tomllib.loads(read(repository / "pyproject.toml"))["project"]
    for extra in re.findall(r"^redraft\[(.+)\]$", "\n".join(words), re.MULTILINE):
        assert extra in project["optional-dependencies"], f"there is no extra {extra}"


def check_npm(words: list[str], repository: Path) -> None:
    read(repository / words[words.index("--prefix") + 1] / "package-lock.json")


def check_python(words: list[str], repository: Path) -> None:
    if words[0] == "-m":
        _, folder, *inner = words[1].split(".")
        module = repository.joinpath(folder, *inner)
        read(module.with_suffix(".py") if not module.is_dir() else module / "__main__.py")
    elif words[0] != "-c":
        read(repository / words[0])


def check_ray(words: list[str], repository: Path) -> None:
    text = read(repository / "deploy/ray/redraft_serve.py")
    for word in words[words.index("redraft_serve:app") + 1 :]:
        name, _, value = word.partition("=")
        assert re.search(rf"^    {name}: ", text, re.MULTILINE), f"there is no argument {name}"
        if name == "options":
            check_redraft(["serve", *shlex.split(value)], repository)


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "redraft": check_redraft,
    "make": check_make,
    "docker": check_docker,
    "pip": check_pip,
    "npm": check_npm,
    "python": check_python,
    "serve": check_ray,
}
